"""Run a comparison: every cell is an ordinary run in a folder of its own, so that it can be resumed.

comparison.toml                                   what is compared
cells/<setting>/<method>/seed-<s>/                a run; what it would have printed is in its run.log
tuning/<setting>/<method>/<values>/seed-<s>/      a run that was evaluated on the validation split
table.csv   table.json   table.md                 the result, of the runs that have ended so far
"""

import json
import re
import time
import tomllib
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
from rich.console import Console

from hellora.comparing.plan import Comparison
from hellora.comparing.statistics import Cell, Row, Run, rows_of, uplink_budgets
from hellora.comparing.table import as_csv, as_markdown, as_table, footnotes
from hellora.core.errors import HelloraError, InputError, RunError
from hellora.core.metrics import LOWER_IS_BETTER
from hellora.core.units import in_bytes
from hellora.experiments.experiment import Experiment
from hellora.experiments.tables import Table
from hellora.record.atomic import write_atomically
from hellora.record.run_folder import RunFolder
from hellora.runs.progress import TerminalProgress
from hellora.runs.run import run_experiment

Say = Callable[[str], None]  # what becomes of a line of progress
Chosen = dict[tuple[str, str], Table | None]  # tuned values by setting and method


@dataclass(frozen=True)
class Result:
    """Holds what a comparison came to: the table, its notes, and the cells that failed with why."""

    rows: Sequence[Row]
    notes: Sequence[str]
    failed: Mapping[Cell, str]


@dataclass
class Tally:
    """Shows a line per run, with the time that the runs still to come will take if they are like those done so far."""

    total: int
    say: Say
    done: int = 0
    seconds: list[float] = field(default_factory=list)  # of the runs done now, not before

    def finished(self, cell: Cell, what: str, outcome: str, seconds: float | None) -> None:
        self.done += 1
        self.seconds += [] if seconds is None else [seconds]
        left = (self.total - self.done) * float(np.mean(self.seconds)) if self.seconds else None
        took = "" if seconds is None else f"  {seconds:.0f} s"
        time_left = "" if left is None or self.done == self.total else f"  {in_time(left)} left"
        name = "  ".join(part for part in (cell.setting, cell.method, what, f"seed {cell.seed}") if part)
        self.say(f"{self.done:>3}/{self.total}  {name}  {outcome}{took}{time_left}")


def run_comparison(comparison: Comparison, out: Path, say: Say, resume: bool = False) -> Result:
    """Run what is not done yet. A run that fails is reported, and the others go on.

    What was done before comes first, and the table is written anew before every run that is not, and at the end: so it
    never has less than an interrupted comparison left.

    Raises:
        InputError: the folder holds something else; nothing has been computed.
        RunError: the table cannot be written; the runs are kept.
    """
    comparison = begin(comparison, out, resume)
    tally = Tally(comparison.tuning_runs + len(comparison.cells), say)
    chosen, lost = tuned_values(comparison, out, tally)
    done = [cell for cell in comparison.cells if RunFolder(cell_folder(out, cell)).summary.exists()]
    outcomes: dict[Cell, Run | str] = {}
    for cell in sorted(comparison.cells, key=lambda cell: cell not in done):
        if cell not in done:
            write_table(result_of(comparison, outcomes, chosen, lost), out)
        point = chosen[cell.setting, cell.method]
        if point is None:
            outcomes[cell] = why = "no tuning run of this method ended, so there is nothing to choose"
            tally.finished(cell, "", f"failed: {why}", None)
        else:
            outcomes[cell] = run_cell(comparison.of(cell, point), cell_folder(out, cell), cell, "", tally)
    result = result_of(comparison, outcomes, chosen, lost)
    write_table(result, out)
    return result


def result_of(
    comparison: Comparison, outcomes: Mapping[Cell, Run | str], chosen: Chosen, lost: Sequence[str]
) -> Result:
    """Collect what the runs that have ended come to, in the order of the comparison's cells; say if that is not all."""
    ended = [(cell, outcomes[cell]) for cell in comparison.cells if cell in outcomes]
    runs = {cell: outcome for cell, outcome in ended if isinstance(outcome, Run)}
    failed = {cell: outcome for cell, outcome in ended if isinstance(outcome, str)}
    budgets = None
    if comparison.budget is not None:
        fixed = comparison.budget
        budgets = dict.fromkeys(runs, fixed) if isinstance(fixed, int) else uplink_budgets(runs)
    rows = rows_of(runs, budgets, {key: point for key, point in chosen.items() if point})
    notes = footnotes(rows, [*remarks(comparison), *lost, *(f"failed: {named(c)}: {why}" for c, why in failed.items())])
    if len(ended) < len(comparison.cells):
        notes.insert(0, f"not complete: {len(runs)} of {len(comparison.cells)} runs are in this table so far.")
    return Result(rows, notes, failed)


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
    known = [(cell_folder(out, cell), comparison.of(cell, {})) for cell in comparison.cells if not comparison.tune]
    known += [
        (tuning_folder(out, cell, point), comparison.of(cell, point, "validation"))
        for cell in comparison.tuning_cells
        for point in comparison.points
    ]
    for folder, experiment in known:
        begun = RunFolder(folder).experiment
        if begun.is_file() and not RunFolder(folder).begun(experiment).same_run(experiment):
            raise InputError(f"{folder} holds a run of another experiment: choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(record, comparison.to_toml().encode())
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from error
    return comparison


def cell_folder(out: Path, cell: Cell) -> Path:
    """Say where a cell's run is."""
    return out / "cells" / cell.setting / cell.method / f"seed-{cell.seed}"


def tuning_folder(out: Path, cell: Cell, point: Table) -> Path:
    """Say where a tuning run is."""
    return (
        out / "tuning" / cell.setting / cell.method / re.sub(r"[^\w.=,+-]", "_", as_text(point)) / f"seed-{cell.seed}"
    )


def as_text(point: Table) -> str:
    return ",".join(f"{key}={value}" for key, value in point.items())


def named(cell: Cell) -> str:
    return f"{cell.setting}, {cell.method}, seed {cell.seed}"


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
    outcome = attempt(experiment, folder)
    seconds = None if done_before else time.perf_counter() - started
    if isinstance(outcome, Run):
        said = f"{outcome.metric} {outcome.summary['final'][outcome.metric]:.3f}"
        worst = outcome.summary["worst_client"]
        said += "" if worst is None else f"  worst client {worst:.3f}"
        said += f"  up {in_bytes(outcome.summary['uplink_bytes'])}" + ("  (done before)" if done_before else "")
        tally.finished(cell, what, said, seconds)
    else:
        tally.finished(cell, what, f"failed: {outcome} (see {folder / 'run.log'})", seconds)
    return outcome


def attempt(experiment: Experiment, folder: Path) -> Run | str:
    """Run one experiment with its lines in its log; return the run, or the reason of a failure in one line."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "run.log").open("a") as log:
            console = Console(file=log, soft_wrap=True, markup=False, emoji=False)
            try:
                with TerminalProgress(console) as progress:
                    summary = run_experiment(experiment, folder, progress, resume=True)
                return Run(summary, RunFolder(folder).read_lines(summary["rounds"]))
            except Exception as error:
                console.print("".join(traceback.format_exception(error)), highlight=False)
                raise
    except HelloraError as error:
        return str(error)
    except Exception as error:  # out of memory, a disk that is full, a user's own strategy: the other cells can go on
        return " ".join(f"{type(error).__name__}: {error}".split())


def write_table(result: Result, out: Path) -> None:
    failed = {str(cell_folder(Path(), cell)): why for cell, why in result.failed.items()}
    try:
        write_atomically(out / "table.csv", as_csv(result.rows).encode())
        write_atomically(out / "table.json", json.dumps(as_table(result.rows, result.notes, failed), indent=1).encode())
        write_atomically(out / "table.md", as_markdown(result.rows, result.notes).encode())
    except OSError as error:
        raise RunError(f"cannot write the table to {out}: {error.strerror}; --resume goes on from here") from error


def remarks(comparison: Comparison) -> list[str]:
    """Say what the budget and the tuning were."""
    lines = []
    if comparison.budget is not None:
        each = "what the cheapest whole run of its setting and seed sent up"
        if isinstance(comparison.budget, int):
            each = in_bytes(comparison.budget)
        lines.append(
            f"equal uplink: a run counts up to its last evaluated round within its budget, {each}; rounds says how "
            f"many that is. Groups and worst client are measured at the end only, so a run that was cut short has none."
        )
    if comparison.memory:
        lines.append(
            f"equal memory: the clients of {len(comparison.memory)} groups can take {', '.join(comparison.memory)}, "
            f"whatever the method; each trains what fits. peak is the most that any client was measured to hold."
        )
    if comparison.tune:
        grid = "; ".join(f"{key} in {list(values)}" for key, values in comparison.tune.grid.items())
        seeds = sorted({cell.seed for cell in comparison.tuning_cells})
        within = f", in {' and '.join(comparison.tune.settings)} together" if comparison.tune.settings else ""
        lines.append(
            f"tuned: the best on a validation split ({comparison.tune.validation:g} of the training data, which no run "
            f"trains on), the same grid for every method ({grid}), seeds {seeds}{within}."
        )
    return lines


def in_time(seconds: float) -> str:
    """Write a duration for a person."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
