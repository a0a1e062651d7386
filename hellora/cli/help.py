"""`--help` shows the commands in their order, each with an example."""

from collections.abc import Iterable, Mapping

import click
import typer
from typer.core import TyperCommand, TyperGroup

# In the order in which `hellora --help` shows them.
EXAMPLES = {
    "run": "hellora run quickstart --set method.allocator=geometric --out runs/mine",
    "init": "hellora init my.csv --out topics.toml",
    "plan": "hellora plan quickstart --set method.allocator=geometric",
    "compare": "hellora compare quickstart --method a=method.allocator=geometric --method b=method.allocator=fed_hello",
    "report": "hellora report runs/quickstart",
    "watch": "hellora watch runs/quickstart",
    "export": "hellora export runs/quickstart --out my-adapter",
    "push": "hellora push my-adapter me/my-adapter --private",
    "predict": "hellora predict runs/quickstart texts.csv --out predictions.csv",
    "evaluate": "hellora evaluate my-adapter test.csv --set data.text=body --set data.label=topic",
    "list": "hellora list allocators",
    "show": "hellora show flexlora",
    "certificates": "hellora certificates keys --host server.example.org --client hospital --client clinic",
    "server": "hellora server state --certificates keys --host 0.0.0.0",
    "client": "hellora client --server server.example.org:8443 --name clinic --data notes.csv --key clinic "
    "--certificate ca.crt",
}


# Of commands below another one.
BELOW = {"client": {"export": "hellora client export clients/clinic my-model"}}


class Command(TyperCommand):
    """Shows brackets in a command's help as they are; typer escapes them for rich, which we do not let draw."""

    def get_help(self, ctx: click.Context) -> str:
        return super().get_help(ctx).replace("\\[", "[")


class Group(TyperGroup):
    """Does the same for a command that has others below it."""

    def get_help(self, ctx: click.Context) -> str:
        return super().get_help(ctx).replace("\\[", "[")


class Commands(TyperGroup):
    """Lists the commands in the order of EXAMPLES."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(super().list_commands(ctx), key=list(EXAMPLES).index)


def with_examples(apps: Iterable[typer.Typer]) -> None:
    """Let the help of each command end with its example."""
    for app in apps:
        let_end(app, EXAMPLES)
        for group in app.registered_groups:
            below = group.typer_instance
            if below is not None and below.registered_callback is not None:
                below.registered_callback.epilog = example(EXAMPLES[str(group.name)])
                let_end(below, BELOW[str(group.name)])


def let_end(app: typer.Typer, examples: Mapping[str, str]) -> None:
    """Let the help of each command of one app end with its example."""
    for command in app.registered_commands:
        command.cls = Command
        name = command.name or (command.callback.__name__ if command.callback else "")
        if name in examples:
            command.epilog = example(examples[name])


def example(line: str) -> str:
    return f"\b\nExample:\n  {line}"  # \b: these lines are not filled
