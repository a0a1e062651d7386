"""These commands use what a run has trained: export, push, predict, evaluate."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from hellora.cli.arguments import Allow, AsJson
from hellora.runs.terminal import Voice, plain_console, quieten

app = typer.Typer(rich_markup_mode=None)
MOST_CLASSES = 20  # that `hellora evaluate` shows

Trained = Annotated[
    Path, typer.Argument(metavar="ADAPTER_OR_RUN", help="what `hellora export` wrote, or a run's folder")
]
Examples = Annotated[
    str, typer.Argument(metavar="FILE", help="CSV, JSON lines or parquet, a folder of images, or a hub id")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="such as data.text=body; repeat")
]


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a run, finished or not")],
    out: Annotated[Path | None, typer.Option(help="a new folder [default: RUN/export]")] = None,
    merged: Annotated[bool, typer.Option("--merged", help="the whole model, for plain transformers")] = False,
    client: Annotated[
        str | None, typer.Option(metavar="ID|NAME", help="its own adapter, where the method has such")
    ] = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's adapter as peft loads it, with a model card."""
    quieten()
    from hellora.results.exporting import export_run

    folder = export_run(run, out, merged, client, allow or ())
    Voice(as_json=as_json).end(f"{folder} (its README shows how to use it)", {"folder": str(folder), "merged": merged})


@app.command()
def push(
    source: Trained,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="on the Hugging Face Hub, such as me/my-adapter")],
    private: Annotated[bool, typer.Option("--private", help="nobody else can see it")] = False,
    merged: Annotated[bool, typer.Option("--merged", help="of a run: the whole model, for plain transformers")] = False,
    allow: Allow = None,
) -> None:
    """Put an adapter on the Hugging Face Hub, with its model card.

    The token is that of `hf auth login`, or HF_TOKEN in the environment.
    """
    quieten()
    from hellora.results.pushing import push

    Voice()(push(source, repo, private, merged, allow or ()))


@app.command()
def predict(
    source: Trained,
    file: Examples,
    overrides: Overrides = None,
    allow: Allow = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help=".jsonl or .csv [default: print JSON lines]")] = None,
) -> None:
    """Say what an adapter predicts for each row.

    That is a label with the probabilities of all classes, or a language model's answer.
    """
    quieten()
    from hellora.experiments.overrides import parse_settings
    from hellora.results.prediction import as_text, predict_file

    predictions = predict_file(source, file, parse_settings(overrides or ()), out, allow or ())
    if out is None:
        sys.stdout.write(as_text(predictions))
    else:
        plain_console().print(f"{len(predictions)} predictions: {out}", highlight=False)


@app.command()
def evaluate(
    source: Trained,
    file: Examples,
    overrides: Overrides = None,
    allow: Allow = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="write the metrics there, too (.json)")] = None,
) -> None:
    """Measure an adapter on labelled examples."""
    quieten()
    from hellora.experiments.overrides import parse_settings
    from hellora.results.prediction import evaluate_file

    found = evaluate_file(source, file, parse_settings(overrides or ()), out, allow or ())
    metrics = {name: value for name, value in found.items() if isinstance(value, float)}
    console, width = plain_console(), max(12, *(len(name) + 2 for name in metrics))
    for name, value in metrics.items():
        console.print(f"{name:<{width}}{value:.4f}", highlight=False)
    if per_class := found.get("per_class"):
        console.print(table_of_classes(per_class))
    if per_class and len(per_class) > MOST_CLASSES:
        console.print(f"{len(per_class)} classes, of which these have the lowest F1; --out has all", highlight=False)


def table_of_classes(per_class: Mapping[str, Mapping[str, float]]) -> Table:
    """Make a table of how well each class is recognised; of many classes, those of the lowest F1."""
    table = Table("class")
    for heading in ("precision", "recall", "F1", "examples"):
        table.add_column(heading, justify="right")
    shown = list(per_class.items())
    if len(shown) > MOST_CLASSES:
        shown = sorted(shown, key=lambda each: each[1]["f1"])[:MOST_CLASSES]
    for name, scores in shown:
        numbers = [f"{scores[key]:.3f}" for key in ("precision", "recall", "f1")]
        table.add_row(Text(name), *numbers, str(scores["examples"]))
    return table
