"""What all commands have in common: how they end, an example in their help, names that the shell completes."""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import typer
from typer.core import TyperCommand, TyperGroup

from hellora.core.errors import HelloraError, InputError
from hellora.experiments.presets import presets

# In the order in which `hellora --help` shows them.
EXAMPLES = {
    "run": "hellora run quickstart --set method.allocator=geometric --out runs/mine",
    "plan": "hellora plan quickstart --round 3",
    "compare": "hellora compare quickstart --method a=method.allocator=geometric --method b=method.allocator=fed_hello",
    "report": "hellora report runs/quickstart",
    "watch": "hellora watch runs/quickstart",
    "export": "hellora export runs/quickstart --out my-adapter",
    "predict": "hellora predict runs/quickstart texts.csv --out predictions.csv",
    "evaluate": "hellora evaluate my-adapter test.csv --set data.text=body --set data.label=topic",
    "list": "hellora list",
    "certificates": "hellora certificates keys --host server.example.org --client hospital --client clinic",
    "server": "hellora server state --certificates keys --host 0.0.0.0",
    "client": "hellora client --server server.example.org:8443 --name clinic --data notes.csv --key clinic "
    "--certificate ca.crt",
}


# What click says of a setting in the place of an option, and of a preset in the place of a command.
SETTING = re.compile(r"(?:no such option '?--|unexpected extra arguments? \()(\w+\.\w+)", re.IGNORECASE)
NO_COMMAND = re.compile(r"No such command '(\w+)'")


class Command(TyperCommand):
    """A command whose help shows brackets as they are; typer escapes them for rich, which we do not let draw."""

    def get_help(self, ctx: click.Context) -> str:
        return super().get_help(ctx).replace("\\[", "[")


class Commands(TyperGroup):
    """The commands in the order of EXAMPLES."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(super().list_commands(ctx), key=list(EXAMPLES).index)


def with_examples(apps: Iterable[typer.Typer]) -> None:
    """Let the help of each command end with its example."""
    for app in apps:
        for command in app.registered_commands:
            command.cls = Command
            name = command.name or (command.callback.__name__ if command.callback else "")
            if name in EXAMPLES:
                command.epilog = f"\b\nExample:\n  {EXAMPLES[name]}"  # \b: these lines are not filled


def sources(incomplete: str) -> Iterator[str]:
    """What an argument PRESET_OR_FILE may become: presets, experiment files, and folders on the way to one."""
    yield from (name for name in presets() if name.startswith(incomplete))
    for path in sorted(Path().glob(f"{incomplete}*")) if not incomplete.startswith("/") else []:
        if path.suffix == ".toml" or path.is_dir():
            yield f"{path}/" if path.is_dir() else str(path)


def run_command(app: typer.Typer) -> int:
    """Run what the command line says; the exit status: 0 done, 1 the run had to stop, 2 the input is wrong.

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
    """What click says of a command line that it cannot read, as we say it."""
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
