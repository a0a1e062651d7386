"""These commands use what a run has trained: export, push, predict, evaluate."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from hellora.cli.arguments import Allow, AsJson
from hellora.runs.terminal import Voice, plain_console, quieten, say

app = typer.Typer(rich_markup_mode=None)

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
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="write all of it there, .jsonl or .csv")] = None,
    json: Annotated[bool, typer.Option("--json", help="print all of it as JSON lines")] = False,
) -> None:
    """Say what an adapter predicts for each row.

    That is a label with the likeliest classes, or a language model's answer; --out and --json have the probabilities of
    all classes.
    """
    quieten()
    from hellora.cli.tables import MOST_ROWS, predictions_table
    from hellora.experiments.overrides import parse_settings
    from hellora.results.prediction import as_text, predict_shown

    predictions, texts = predict_shown(source, file, parse_settings(overrides or ()), out, allow or ())
    console = plain_console()
    if json:
        sys.stdout.write(as_text(predictions))
    elif out is not None:
        say(console, f"{len(predictions)} predictions: {out}")
    elif predictions:
        console.print(predictions_table(console, predictions, texts))
        if len(predictions) > MOST_ROWS:
            say(console, f"… and {len(predictions) - MOST_ROWS} more: --out FILE has all of them")


@app.command()
def evaluate(
    source: Trained,
    file: Examples,
    overrides: Overrides = None,
    allow: Allow = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="write all of it there, too (.json)")] = None,
    json: Annotated[bool, typer.Option("--json", help="print all of it as JSON")] = False,
) -> None:
    """Measure an adapter on labelled examples."""
    quieten()
    from hellora.cli.tables import MOST_CLASSES, confusion_table, scores_table
    from hellora.experiments.overrides import parse_settings
    from hellora.results.prediction import as_json, evaluate_file

    found = evaluate_file(source, file, parse_settings(overrides or ()), out, allow or ())
    if json:
        sys.stdout.write(as_json(found))
        return
    metrics = {name: value for name, value in found.items() if isinstance(value, float)}
    console, width = plain_console(), max(12, *(len(name) + 2 for name in metrics))
    for name, value in metrics.items():
        say(console, f"{name:<{width}}{value:.4f}", under=width)
    per_class = found.get("per_class", {})
    if per_class:
        console.print(scores_table(per_class))
    if len(per_class) > MOST_CLASSES:
        say(console, f"these {MOST_CLASSES} of {len(per_class)} classes have the lowest F1; --out FILE has all")
    if (confused := confusion_table(found, console.width)) is not None:
        console.print(confused)
