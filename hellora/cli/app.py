"""Make the command line of all commands. Heavy imports wait until one needs them, so that --help answers at once."""

import os
import sys
from typing import Annotated

import typer

from hellora.cli import adapter, compare, federation, plan, report, run
from hellora.cli.ending import run_command
from hellora.cli.help import Commands, with_examples
from hellora.core.version import __version__
from hellora.runs.terminal import plain_console

app = typer.Typer(cls=Commands, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True, epilog="\b\nExample:\n  hellora run quickstart")
def hellora(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Fine-tune one model with LoRA across clients that cannot all afford the same training."""
    if version:
        print(f"hellora {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("list")
def list_() -> None:
    """List methods, tasks, partitioners and presets."""
    from hellora.experiments import registry
    from hellora.experiments.presets import preset_summaries

    console = plain_console()
    for kind in registry.FOLDERS:
        console.print(f"\n{registry.heading(kind)}", style="bold")
        for name in registry.names(kind):
            console.print(f"  {name:<28}{registry.summary(kind, name)}", highlight=False)
    console.print("\npresets", style="bold")
    for name, lines in preset_summaries().items():
        for label, line in zip([name] + [""] * len(lines), lines, strict=False):
            console.print(f"  {label:<28}{line}", highlight=False)


PARTS = (run.app, plan.app, compare.app, adapter.app, federation.app, report.app)
for part in PARTS:
    app.add_typer(part)
with_examples((app, *PARTS))


def main() -> None:
    """Run the command `hellora`, and exit with its status: 0 done, 1 the run had to stop, 2 the input is wrong, 128 and
    more a signal ended it."""
    os.environ["PYTHONSAFEPATH"] = "1"  # no process that we start looks for modules in its working directory
    sys.exit(run_command(app))
