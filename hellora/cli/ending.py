"""A command ends with what was done, with one line that says what is wrong, or with the command that goes on."""

import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click
import typer

from hellora.core.errors import HelloraError, InputError
from hellora.experiments.presets import presets

# What click says of a setting in the place of an option, and of a preset in the place of a command.
SETTING = re.compile(r"(?:no such option '?--|unexpected extra arguments? \()(\w+\.\w+)", re.IGNORECASE)
NO_COMMAND = re.compile(r"No such command '(\w+)'")


def run_command(app: typer.Typer) -> int:
    """Run what the command line says, and return the exit status: 0 done, 1 the run had to stop, 2 the input is wrong.

    Errors are one line on standard error: what is wrong, where, and what to do.
    """
    try:
        return app(prog_name="hellora", standalone_mode=False) or 0
    except HelloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except click.ClickException as error:
        print(f"error: {in_one_line(error)}", file=sys.stderr)
        return 2
    except click.Abort:
        return 130


def in_one_line(error: click.ClickException) -> str:
    """Put what click says of a command line that it cannot read into one line, as we say it."""
    said = " ".join(error.format_message().split()).removesuffix(".")
    said = re.sub(r"( Did you mean [^?]+\?)\1", r"\1", said)  # click and typer both ask
    context = error.ctx if isinstance(error, click.UsageError) else None
    where = context.command_path if context else "hellora"
    advice = f"see `{where} --help`"
    if setting := SETTING.search(said):
        advice = f"write --set {setting[1]}=…"
    elif (command := NO_COMMAND.search(said)) and command[1] in presets():
        advice = f"write hellora run {command[1]}"
    return f"{where}: {said[:1].lower()}{said[1:]}: {advice}"


@contextmanager
def resumable(again: Sequence[str], say: Callable[[str], None]) -> Iterator[None]:
    """Let Ctrl-C end the block, and the command, with the line that goes on."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"stopped; go on with: {shlex.join(again)}")
        raise typer.Exit(130) from None


@contextmanager
def until_stopped(words: str, say: Callable[[str], None]) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM or a closed terminal end the block, and the command as one that has done its work."""
    from hellora.deployment.supervision import ending_on_signals

    with ending_on_signals():
        try:
            yield
        except KeyboardInterrupt:
            say(words)
            raise typer.Exit(0) from None


class Lines:
    """Prints lines as they are, and at once."""

    def __call__(self, line: str) -> None:
        print(line, flush=True)
