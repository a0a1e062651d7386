"""hellora: fine-tune one Hugging Face model with LoRA across clients that cannot all afford the same training.

import hellora
summary = hellora.run("quickstart", {"method.allocator": "geometric"}, out="runs/mine")
hellora.predict("runs/mine", "texts.csv")

The functions are the commands of `hellora`. What they raise is an InputError (nothing has been computed) or a RunError.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hellora.errors import HelloraError, InputError, RunError

if TYPE_CHECKING:
    from hellora.comparing import Result

__version__ = "0.1.0"
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


def run(source: str, settings: Settings | None = None, *, out: str | Path, resume: bool = False) -> Mapping[str, Any]:
    """Run a preset or an experiment file with `settings` ("section.key": value) changed, as `hellora run` does.

    Returns the run's summary; the adapter is in the folder `adapter` below `out`. With `compute.workers` above 1,
    call it below `if __name__ == "__main__":`, for the worker processes import the calling script.

    Raises:
        InputError: a setting, the data, the model or the folder `out` does not fit; nothing has been computed.
        RunError: a round got too few usable updates; go on with `resume=True`.
    """
    from rich.console import Console

    from hellora.config import read_experiment
    from hellora.progress import TerminalProgress
    from hellora.runs import run_experiment

    experiment = read_experiment(source, settings or {})
    with TerminalProgress(Console(soft_wrap=True)) as progress:
        return run_experiment(experiment, Path(out), progress, resume)


def plan(source: str, settings: Settings | None = None, *, round: int = 0) -> dict[int, list[int]]:
    """Who would train what in a round: the rank that each client of the cohort trains in each layer, 0 = frozen.

    Neither weights nor data are loaded. Where a method scores layers, all of them score alike here.

    Raises:
        InputError: a setting does not fit, or there is no such round.
    """
    from hellora.config import read_experiment
    from hellora.experiment import plan as plan_round

    _, allocation = plan_round(read_experiment(source, settings or {}), round)
    return dict(zip(allocation.clients, allocation.ranks.tolist(), strict=True))


def compare(
    source: str,
    experiment: Settings | None = None,
    *,
    methods: Mapping[str, Settings] | None = None,
    settings: Mapping[str, Settings] | None = None,
    seeds: Sequence[int] | None = None,
    tune: Mapping[str, Sequence[Any]] | None = None,
    budget: str | int | None = None,
    memory: Sequence[str] | None = None,
    out: str | Path,
    resume: bool = False,
) -> "Result":
    """Compare methods over settings and seeds, as `hellora compare` does; a line per finished run is printed.

    experiment   settings that all runs share
    methods      by name, what makes a method: {"geometric": {"method.allocator": "geometric"}}
    settings     by name, what makes a setting to compare in: {"skewed": {"data.alpha": 0.1}}
    seeds        [0, 1, 2] if not given
    tune         values to try for every method, on a validation split: {"train.lr": [1e-3, 1e-2]}
    budget       "uplink", or bytes: compare at equal uplink
    memory       of each group of clients, such as ["2GiB", "8GiB"]: compare at equal memory

    Returns the rows of the table, its notes, and which runs failed.

    Raises:
        InputError: something does not fit; nothing has been computed.
    """
    from hellora.comparing import run_comparison
    from hellora.comparison import read_comparison

    changes: dict[str, Any] = {
        "experiment": dict(experiment or {}),
        "methods": dict(methods or {}),
        "settings": dict(settings or {}),
        "tune": {"grid": dict(tune)} if tune else {},
    }
    single = {"seeds": seeds and list(seeds), "budget": budget, "memory": memory and list(memory)}
    changes |= {key: value for key, value in single.items() if value is not None}
    return run_comparison(read_comparison(source, changes), Path(out), print, resume)


def report(*runs: str | Path, out: str | Path | None = None) -> Path:
    """Write a run, or the comparison of several, as one HTML file that needs no network; returns the file.

    runs     folders of runs, or of a comparison
    out      None = `report.html` in the first folder

    Raises:
        InputError: a folder holds no run, or a damaged one, or the file cannot be written.
    """
    from hellora.reporting.overview import page_of
    from hellora.reporting.page import write

    folders = [Path(run) for run in runs]
    if not folders:
        raise InputError("no run was named: say which folders of runs the report is of")
    file = folders[0] / "report.html" if out is None else Path(out)
    write(page_of(folders), file)
    return file


def export(
    run: str | Path, out: str | Path | None = None, *, merged: bool = False, client: int | str | None = None
) -> Path:
    """Write the adapter of a run, finished or not, with a model card; returns its folder.

    out      a new folder; None = `export` (`merged`, `client-00003`) below the run's
    merged   the whole model with the adapter in its weights, for plain transformers
    client   the id or name of a client, whose own adapter it shall be

    Raises:
        InputError: there is no such run or client, the folder exists, or a quantised base was to be merged.
    """
    from hellora.exporting import export_run

    return export_run(Path(run), out if out is None else Path(out), merged, None if client is None else str(client))


def predict(
    source: str | Path, file: str | Path, settings: Settings | None = None, *, out: str | Path | None = None
) -> list[dict[str, Any]]:
    """What an adapter says of each row of a file, a folder of images or a data set of the hub.

    source     an exported adapter, merged weights, or a run
    settings   such as {"data.text": "body"}; the columns are otherwise those of the run
    out        written there, too: .jsonl or .csv

    A prediction is {"row", "label", "probabilities"}, of images also {"file"}; of a language model {"row", "prompt",
    "answer"}.

    Raises:
        InputError: the adapter, the file or a setting does not fit.
    """
    from hellora.prediction import WRITERS, Predictor, as_text, check_out, write

    place = None if out is None else Path(out)
    check_out(place, WRITERS)
    predictions = Predictor.load(Path(source), settings or {}).predict(str(file))
    if place is not None:
        write(place, as_text(predictions, place.suffix))
    return predictions


def evaluate(
    source: str | Path, file: str | Path, settings: Settings | None = None, *, out: str | Path | None = None
) -> dict[str, float]:
    """The metrics of an adapter on labelled examples, as a run measures them.

    The arguments are those of `predict`; `out` is a .json file.

    Raises:
        InputError: the adapter, the file or a setting does not fit, or a label is none of the run's classes.
    """
    import json

    from hellora.prediction import Predictor, check_out, write

    place = None if out is None else Path(out)
    check_out(place, (".json",))
    metrics = Predictor.load(Path(source), settings or {}).evaluate(str(file))
    if place is not None:
        write(place, json.dumps(metrics, indent=1) + "\n")
    return metrics
