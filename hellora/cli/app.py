"""Make the command line of all commands. Heavy imports wait until one needs them, so that --help answers at once."""

import os
import sys
from typing import Annotated

import typer

from hellora.cli import adapter, catalogue, compare, federation, init, plan, report, run
from hellora.cli.ending import run_command
from hellora.cli.help import Commands, with_examples
from hellora.core.version import __version__

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


PARTS = (run.app, init.app, plan.app, compare.app, adapter.app, federation.app, report.app, catalogue.app)
for part in PARTS:
    app.add_typer(part)
with_examples((app, *PARTS))


def main() -> None:
    """Run the command `hellora`, and exit with its status: 0 done, 1 the run had to stop, 2 the input is wrong, 128 and
    more a signal ended it."""
    os.environ["PYTHONSAFEPATH"] = "1"  # no process that we start looks for modules in its working directory
    sys.exit(run_command(app))
