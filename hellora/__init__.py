"""hellora: fine-tune one Hugging Face model with LoRA across clients that cannot all afford the same training.

import hellora
summary = hellora.run("quickstart", {"method.allocator": "geometric"}, out="runs/mine")
hellora.predict("runs/mine", "texts.csv")

The functions are the commands of `hellora`. What they raise is an InputError (nothing has been computed) or a RunError.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hellora.core.errors import HelloraError, InputError, RunError
from hellora.core.version import __version__

if TYPE_CHECKING:
    from hellora.comparing.results import Result

__all__ = [
    "HelloraError",
    "InputError",
    "RunError",
    "__version__",
    "compare",
    "evaluate",
    "export",
    "plan",
    "predict",
    "report",
    "run",
]

Settings = Mapping[str, Any]  # "section.key": value


def run(
    source: str,
    settings: Settings | None = None,
    *,
    out: str | Path,
    resume: bool = False,
    from_round: int | None = None,
    allow: Sequence[str] = (),
) -> Mapping[str, Any]:
    """Run a preset or an experiment file, as `hellora run` does; progress is printed.

    With `compute.workers` above 1, call it below `if __name__ == "__main__":`, for the worker processes import the
    calling script.

    Args:
        source: a preset's name, or a TOML file
        settings: what to change in it, `{"section.key": value}`
        out: the folder of the run, new or, to resume, as it was left
        resume: go on with the run in `out` after its last whole round
        from_round: with `resume`, go back to before this round; a state of it must be kept (the setting `keep`)
        allow: code that the file may name (`"mine.py:Mine"`, `"remote-code"`); what `settings` name is allowed

    Returns:
        The run's summary, as in `summary.json`. The adapter is in the folder `adapter` below `out`.

    Raises:
        InputError: a setting, the data, the model or the folder `out` does not fit; nothing has been computed.
        RunError: a round got too few usable updates; go on with `resume=True`.
    """
    from rich.console import Console

    from hellora.experiments.config import read_experiment
    from hellora.runs.progress import TerminalProgress
    from hellora.runs.run import run_experiment

    experiment = read_experiment(source, settings or {}, allow=allow)
    with TerminalProgress(Console(soft_wrap=True)) as progress:
        return run_experiment(experiment, Path(out), progress, resume, from_round=from_round)


def plan(
    source: str, settings: Settings | None = None, *, round: int = 0, allow: Sequence[str] = ()
) -> dict[int, list[int]]:
    """Show who would train what in a round, as `hellora plan` does.

    Neither weights nor data are loaded. Where a method scores layers, all of them score alike here.

    Args:
        source: a preset's name, or a TOML file
        settings: what to change in it, `{"section.key": value}`
        round: which round, from 0
        allow: code that the file may name

    Returns:
        The rank that each client of the round's cohort trains in each layer, by client id; 0 = frozen.

    Raises:
        InputError: a setting does not fit, or there is no such round.
    """
    from hellora.experiments.config import read_experiment
    from hellora.experiments.planning import plan as plan_round

    _, allocation = plan_round(read_experiment(source, settings or {}, allow=allow), round)
    return dict(zip(allocation.clients, allocation.ranks.tolist(), strict=True))


def compare(
    source: str,
    experiment: Settings | None = None,
    *,
    methods: Mapping[str, Settings] | None = None,
    settings: Mapping[str, Settings] | None = None,
    seeds: Sequence[int] | None = None,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    target: float | None = None,
    tune: Mapping[str, Sequence[Any]] | None = None,
    budget: str | int | None = None,
    memory: Sequence[str] | None = None,
    ridge_head: bool = False,
    out: str | Path,
    resume: bool = False,
    allow: Sequence[str] = (),
) -> "Result":
    """Compare methods over settings and seeds, as `hellora compare` does; a line per finished run is printed.

    Args:
        source: a preset's name, an experiment file, or a file that describes a comparison
        experiment: settings that all runs share
        methods: by name, what makes a method: `{"geometric": {"method.allocator": "geometric"}}`
        settings: by name, what makes a setting to compare in: `{"skewed": {"data.alpha": 0.1}}`
        seeds: one run each; `[0, 1, 2]` if not given
        sweep: values of settings, each one more setting to compare in: `{"fleet.availability": [1.0, 0.7]}`
        target: of the main metric: what it costs each method to reach it
        tune: values to try for every method, on a validation split: `{"train.lr": [1e-3, 1e-2]}`
        budget: `"uplink"`, or bytes: compare at equal uplink
        memory: of each group of clients, such as `["2GiB", "8GiB"]`: compare at equal memory
        ridge_head: compare with the frozen network under a head in closed form, too
        out: the folder of all runs and of the table
        resume: keep the runs in `out` that have ended, and go on with the others
        allow: code that the files may name

    Returns:
        The `table` as a pandas DataFrame, its `rows` and `notes`, and which runs `failed` and why.

    Raises:
        InputError: something does not fit; nothing has been computed.
    """
    from rich.console import Console

    from hellora.comparing.options import changes_of
    from hellora.comparing.plan import read_comparison
    from hellora.comparing.run import run_comparison

    changes = changes_of(
        experiment, methods, settings, tune, sweep=sweep, seeds=seeds, target=target, budget=budget, memory=memory,
        ridge_head=ridge_head,
    )  # fmt: skip
    return run_comparison(read_comparison(source, changes, allow), Path(out), Console(soft_wrap=True), resume)


def report(*runs: str | Path, out: str | Path | None = None) -> Path:
    """Write a run, or the comparison of several, as one HTML file that needs no network.

    Args:
        runs: folders of runs, or of a comparison
        out: the file; None = `report.html` in the first folder

    Returns:
        The file.

    Raises:
        InputError: a folder holds no run, or a damaged one, or the file cannot be written.
    """
    from hellora.reporting.overview import write_report

    return write_report([Path(run) for run in runs], out if out is None else Path(out))


def export(
    run: str | Path,
    out: str | Path | None = None,
    *,
    merged: bool = False,
    client: int | str | None = None,
    allow: Sequence[str] = (),
) -> Path:
    """Write the adapter of a run, finished or not, with a model card.

    Args:
        run: the run's folder
        out: a new folder; None = `export` (`merged`, `client-00003`) below the run's
        merged: the whole model with the adapter in its weights, for plain transformers
        client: the id or name of a client, whose own adapter it shall be
        allow: code that the run's experiment may name

    Returns:
        The new folder.

    Raises:
        InputError: there is no such run or client, the folder exists, or a quantised base was to be merged.
    """
    from hellora.results.exporting import export_run

    folder, whose = None if out is None else Path(out), None if client is None else str(client)
    return export_run(Path(run), folder, merged, whose, allow)


def predict(
    source: str | Path,
    file: str | Path,
    settings: Settings | None = None,
    *,
    out: str | Path | None = None,
    allow: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Say what an adapter predicts for each row of a file, a folder of images or a data set of the hub.

    Args:
        source: an exported adapter, merged weights, or a run
        file: CSV, JSON lines or parquet, a folder of images, or a data set's name on the hub
        settings: such as `{"data.text": "body"}`; the columns are otherwise those of the run
        out: a .jsonl or .csv file, in which the predictions are written, too
        allow: code that the adapter or the run may name

    Returns:
        One dictionary per row: `row` (from 0), `label`, `probabilities` (by class; they sum to 1) and, of an image,
        `file`; of several labels `labels` and `probabilities`, of numbers each by its name; of a language model `row`,
        `prompt` and `answer`.

    Raises:
        InputError: the adapter, the file or a setting does not fit, or the model says nan.
    """
    from hellora.results.prediction import predict_file

    return predict_file(Path(source), str(file), settings or {}, out if out is None else Path(out), allow)


def evaluate(
    source: str | Path,
    file: str | Path,
    settings: Settings | None = None,
    *,
    out: str | Path | None = None,
    allow: Sequence[str] = (),
) -> dict[str, Any]:
    """Compute the metrics of an adapter on labelled examples, as a run measures them.

    Args:
        source: an exported adapter, merged weights, or a run
        file: what `predict` takes, with labels
        settings: such as `{"data.label": "topic"}`; the columns are otherwise those of the run
        out: a .json file, in which the metrics are written, too; null for one that is not finite
        allow: code that the adapter or the run may name

    Returns:
        The metrics by name, with those that `task.metrics` asks for. Of classes: accuracy, macro_f1, micro_f1, loss
        (nats per example), `per_class` (precision, recall, f1 and examples by class) and, of up to 50 classes,
        `confusion`: its `labels`, and as `counts` of each class (rows) how many are taken for each (columns); of more
        `most_confused`: [class, taken for, examples] each. Of tagged words: entity_f1 (or macro_f1 of plain tags),
        token_accuracy, loss (nats per word), `per_class` by kind of entity. Of language: loss (nats per token),
        perplexity and, where `task.answers` asks for answers, rouge_l.

    Raises:
        InputError: the adapter, the file or a setting does not fit, or a label is none of the run's classes.
    """
    from hellora.results.prediction import evaluate_file

    return evaluate_file(Path(source), str(file), settings or {}, out if out is None else Path(out), allow)
