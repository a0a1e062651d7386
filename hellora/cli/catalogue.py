"""These commands say what an experiment can name: `hellora list` all names, `hellora show` one of them."""

from dataclasses import asdict
from typing import Annotated

import typer

from hellora.cli.arguments import AsJson
from hellora.runs.terminal import Voice

app = typer.Typer(rich_markup_mode=None)
NAMES = 30  # columns of a name
LABELS = 10  # columns of what a line of `hellora show` is about

Kind = Annotated[
    str | None, typer.Argument(metavar="KIND", help="presets, allocators, aggregators, tasks … [default: all]")
]


@app.command("list")
def list_(kind: Kind = None, as_json: AsJson = False) -> None:
    """List methods, tasks, partitioners, presets and tables."""
    from hellora.experiments import catalogue

    say, kinds = Voice(as_json=as_json), catalogue.KINDS if kind is None else [catalogue.kind_called(kind)]
    if as_json:
        say.end("", {catalogue.heading(each): catalogue.summaries(each) for each in kinds})
        return
    for each in kinds:
        say(f"\n{catalogue.heading(each)}", style="bold")
        for name, lines in catalogue.summaries(each).items():
            for label, line in zip([name] + [""] * len(lines), lines, strict=False):
                say(f"  {label:<{NAMES}}{line}", under=NAMES + 2)


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="of a preset, a table such as train, or anything that `hellora list` has"),
    ],
    kind: Annotated[str | None, typer.Option(metavar="KIND", help="of a name of several kinds: preset …")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a preset, strategy or table is for."""
    from hellora.experiments import catalogue

    entry = catalogue.entry(name, None if kind is None else catalogue.kind_called(kind))
    say = Voice(as_json=as_json)
    if as_json:
        say.end("", {**asdict(entry), "facts": dict(entry.facts)})
        return
    say(entry.title, style="bold")
    for text in entry.text:
        say(f"  {text}", under=2)
    say("")
    for label, said in entry.facts:
        say(f"{label:<{LABELS}}{said}", under=LABELS)
    if entry.settings:
        say("\nsettings", style="bold")
    for setting in entry.settings:
        say(f"  {setting.key} = {setting.value}", under=6)
        if about := ": ".join(part for part in (setting.takes, setting.meaning) if part):
            say(f"      {about}", under=6)
