"""Run a comparison: every cell is an ordinary run in a folder of its own, so that it can be resumed.

comparison.toml                                   what is compared
cells/<setting>/<method>/seed-<s>/                a run; what it would have printed is in its run.log
tuning/<setting>/<method>/<values>/seed-<s>/      a run that was evaluated on the validation split
table.csv   .json   .md   .tex                    the result, of the runs that have ended so far
figures/                                          the same as SVG and PDF, drawn at the end
"""

import re
import time
import tomllib
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from rich.console import Console

from hellora.comparing.plan import Comparison
from hellora.comparing.progress import Tally, WatchedProgress
from hellora.comparing.results import Chosen, Result, as_text, draw_figures, named, result_of, write_table
from hellora.comparing.runs import Cell, Run
from hellora.core.errors import HelloraError, InputError
from hellora.core.metrics import LOWER_IS_BETTER
from hellora.core.units import in_bytes
from hellora.experiments.experiment import Experiment
from hellora.experiments.tables import Table
from hellora.record.atomic import write_atomically
from hellora.record.run_folder import RunFolder
from hellora.runs.run import run_experiment


def run_comparison(comparison: Comparison, out: Path, console: Console, resume: bool = False) -> Result:
    """Run what is not done yet. A run that fails is reported, and the others go on.

    What was done before comes first, and the table is written anew before every run that is not, and at the end: so it
    never has less than an interrupted comparison left.

    Raises:
        InputError: the folder holds something else; nothing has been computed.
        RunError: the table cannot be written; the runs are kept.
    """
    comparison = begin(comparison, out, resume)
    with Tally(comparison.tuning_runs + len(comparison.cells), console) as tally:
        chosen, lost = tuned_values(comparison, out, tally)
        outcomes = run_cells(comparison, out, chosen, lost, tally)
    result = result_of(comparison, outcomes, chosen, lost)
    write_table(result, out)
    draw_figures(result, {cell: run for cell, run in outcomes.items() if isinstance(run, Run)}, comparison, out)
    return result


def run_cells(
    comparison: Comparison, out: Path, chosen: Chosen, lost: Sequence[str], tally: Tally
) -> dict[Cell, Run | str]:
    """Run the cells that are not done yet; return what came of all."""
    done = [cell for cell in comparison.cells if RunFolder(out / cell.folder).summary.exists()]
    outcomes: dict[Cell, Run | str] = {}
    for cell in sorted(comparison.cells, key=lambda cell: cell not in done):
        if cell not in done:
            write_table(result_of(comparison, outcomes, chosen, lost), out)
        point = chosen[cell.setting, cell.method]
        if point is None:
            outcomes[cell] = why = "no tuning run of this method ended, so there is nothing to choose"
            tally.finished(cell, "", [f"failed: {why}"], None)
        else:
            outcomes[cell] = run_cell(comparison.of(cell, point), out / cell.folder, cell, "", tally)
    return outcomes


def begin(comparison: Comparison, out: Path, resume: bool) -> Comparison:
    """Make the folder this comparison's. One that is resumed may have grown, but what it has run must stay as it is.

    Returns the comparison with the seeds of its tuning written out. Where [tune] names none they are those that it
    began with: another list of seeds must not choose other values.
    """
    record = out / "comparison.toml"
    if record.is_file() and not resume:
        raise InputError(f"{out} holds a comparison already: go on with --resume, or choose another --out")
    empty = not out.exists() or (out.is_dir() and all(file.suffix == ".draft" for file in out.iterdir()))
    if not record.is_file() and not empty:
        raise InputError(f"{out} exists and is not a comparison of hellora: choose another --out")
    before = tomllib.loads(record.read_text()).get("tune") if record.is_file() else None
    comparison = comparison.with_tuning_seeds((before or {}).get("seeds", ()))
    if any((out / "cells").glob("*/*/*")) and before != tomllib.loads(comparison.to_toml()).get("tune"):
        raise InputError(f"{out} has runs with values from another [tune]: choose another --out")
    known = [(out / cell.folder, comparison.of(cell, {})) for cell in comparison.cells if not comparison.tune]
    known += [
        (tuning_folder(out, cell, point), comparison.of(cell, point, "validation"))
        for cell in comparison.tuning_cells
        for point in comparison.points
    ]
    for folder, experiment in known:
        if RunFolder(folder).experiment.is_file():
            RunFolder(folder).begun(experiment)  # raises where it is another
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(record, comparison.to_toml().encode())
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from error
    return comparison


def tuning_folder(out: Path, cell: Cell, point: Table) -> Path:
    """Say where a tuning run is."""
    return (
        out / "tuning" / cell.setting / cell.method / re.sub(r"[^\w.=,+-]", "_", as_text(point)) / f"seed-{cell.seed}"
    )


def tuned_values(comparison: Comparison, out: Path, tally: Tally) -> tuple[Chosen, list[str]]:
    """Find the point of the grid with the best mean metric on the validation split, per method, in each setting or in
    those that are tuned together; the first of equals. A point at which a run failed is not chosen; None where that
    leaves none. Also return why runs failed.
    """
    settings, methods = comparison.settings, comparison.methods
    if not comparison.tune:
        return {key: {} for key in product(settings, methods)}, []
    chosen: Chosen = {}
    lost = []
    for tried, method in product(comparison.tuned_together, methods):
        cells = [cell for cell in comparison.tuning_cells if cell.method == method and cell.setting in tried]
        scores: list[tuple[float, Table]] = []
        for point in comparison.points:
            runs = []
            for cell in cells:
                experiment, folder = comparison.of(cell, point, "validation"), tuning_folder(out, cell, point)
                runs.append(run_cell(experiment, folder, cell, as_text(point), tally))
            lost += [
                f"failed while tuning, and not chosen: {named(cell)}, {as_text(point)}: {why}"
                for cell, why in zip(cells, runs, strict=True)
                if isinstance(why, str)
            ]
            ended = [run for run in runs if isinstance(run, Run)]
            if len(ended) == len(runs):
                sign = -1 if ended[0].metric in LOWER_IS_BETTER else 1
                scores.append((sign * float(np.mean([run.summary["final"][run.metric] for run in ended])), point))
        best = max(scores, key=lambda score: score[0])[1] if scores else None
        chosen |= {(setting, method): best for setting in (settings if comparison.tune.settings else tried)}
    return chosen, lost


def run_cell(experiment: Experiment, folder: Path, cell: Cell, what: str, tally: Tally) -> Run | str:
    """Run or resume one run; return the finished run, or why it failed."""
    done_before = RunFolder(folder).summary.exists()
    started = time.perf_counter()
    tally.loading(cell, what)
    outcome = attempt(experiment, folder, partial(tally.running, cell, what))
    seconds = None if done_before else time.perf_counter() - started
    if isinstance(outcome, Run):
        worst = outcome.summary["worst_client"]
        said = [
            f"{outcome.metric} {outcome.summary['final'][outcome.metric]:.3f}",
            "(done before)" if done_before else "",
            "" if worst is None else f"worst client {worst:.3f}",
            f"up {in_bytes(outcome.summary['uplink_bytes'])}",
        ]
        tally.finished(cell, what, said, seconds)
    else:
        tally.finished(cell, what, [f"failed: {outcome} (see {folder / 'run.log'})"], seconds)
    return outcome


def attempt(experiment: Experiment, folder: Path, tell: Callable[[int, int, int], None]) -> Run | str:
    """Run one experiment with its lines in its log; return the run, or the reason of a failure in one line."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "run.log").open("a") as log:
            console = Console(file=log, soft_wrap=True, markup=False, emoji=False)
            try:
                with WatchedProgress(console, tell) as progress:
                    summary = run_experiment(experiment, folder, progress, resume=True)
                return Run(summary, RunFolder(folder).read_lines(summary["rounds"]))
            except Exception as error:
                console.print("".join(traceback.format_exception(error)), highlight=False)
                raise
    except HelloraError as error:
        return str(error)
    except Exception as error:  # out of memory, a disk that is full, a user's own strategy: the other cells can go on
        return " ".join(f"{type(error).__name__}: {error}".split())
