"""A command ends with what was done, with one line that says what is wrong, or with the command that goes on."""

import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import click
import typer

from hellora.core.errors import HelloraError, InputError, full, is_full
from hellora.deployment.supervision import ending_on_signals
from hellora.experiments.presets import presets

# What click says of a setting in the place of an option, and of a preset in the place of a command.
SETTING = re.compile(r"(?:no such option '?--|unexpected extra arguments? \()(\w+\.\w+)", re.IGNORECASE)
INTERRUPTED = 128 + signal.SIGINT  # as shells say that Ctrl-C ended a command
EXTRAS = {"flower": ("flwr", "ray", "cryptography"), "quantized": ("bitsandbytes",)}  # the packages that extras bring
NO_COMMAND = re.compile(r"No such command '(\w+)'")


def run_command(app: typer.Typer) -> int:
    """Run what the command line says, and return the exit status: 0 done, 1 the run had to stop, 2 the input is wrong,
    128 + its number where a signal ended it (Ctrl-C, SIGTERM, SIGHUP).

    Errors are one line on standard error: what is wrong, where, and what to do.
    """
    with ending_on_signals() as signals:
        status = outcome_of(app)
    return 128 + signals[0] if signals and status == INTERRUPTED else status


def outcome_of(app: typer.Typer) -> int:
    """Run what the command line says, print an error in one line, and return the exit status, as if Ctrl-C was the only
    signal."""
    try:
        return app(prog_name="hellora", standalone_mode=False) or 0
    except HelloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except click.ClickException as error:
        print(f"error: {in_one_line(error)}", file=sys.stderr)
        return 2
    except click.Abort:
        return INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "hellora":
            raise
        print(f"error: the package {error.name} is not installed: {install(error.name)}", file=sys.stderr)
        return 2
    except OSError as error:
        if not is_full(error):
            raise
        print(f"error: {full(error)}, and begin again", file=sys.stderr)
        return 1


def install(package: str) -> str:
    """Say how to install a package; where it comes with an extra, the extra."""
    extra = next((extra for extra, names in EXTRAS.items() if package.partition(".")[0] in names), None)
    return f"pip install 'hellora[{extra}]'" if extra else f"pip install {package}"


def in_one_line(error: click.ClickException) -> str:
    """Put what click says of a command line that it cannot read into one line, as we say it."""
    said = " ".join(error.format_message().split()).removesuffix(".")
    said = re.sub(r"( Did you mean [^?]+\?)\1", r"\1", said)  # click and typer both ask
    said = re.sub(r"\.? \((Did you mean .*\?)\)$", r". \1", said)
    context = error.ctx if isinstance(error, click.UsageError) else None
    where = context.command_path if context else "hellora"
    advice = f"see `{where} --help`"
    if setting := SETTING.search(said):
        advice = f"write --set {setting[1]}=…"
    elif (command := NO_COMMAND.search(said)) and command[1] in presets():
        advice = f"write hellora run {command[1]}"
    if said.endswith("?"):
        return f"{where}: {said[:1].lower()}{said[1:]} {advice[:1].upper()}{advice[1:]}"
    return f"{where}: {said[:1].lower()}{said[1:]}: {advice}"


@contextmanager
def resumable(again: Sequence[str], say: Callable[[str], None]) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM or a closed terminal end the block, and the command, with the line that goes on."""
    try:
        yield
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal may be gone
            say(f"stopped; go on with: {shlex.join(again)}")
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def until_stopped(words: str, say: Callable[[str], None]) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM or a closed terminal end the block, and the command as one that has done its work."""
    try:
        yield
    except KeyboardInterrupt:
        with suppress(OSError):
            say(words)
        raise typer.Exit(0) from None
