"""What a comparison comes to: rows and notes, and the files that show them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hellora.comparing.figures import draw
from hellora.comparing.latex import as_latex
from hellora.comparing.plan import Comparison
from hellora.comparing.runs import Cell, Run
from hellora.comparing.statistics import Row, budgets_of, rows_of
from hellora.comparing.table import as_csv, as_markdown, as_table, footnotes, frame
from hellora.core.errors import RunError
from hellora.core.units import in_bytes
from hellora.experiments.tables import Table
from hellora.record.atomic import write_atomically

if TYPE_CHECKING:
    from pandas import DataFrame

Chosen = dict[tuple[str, str], Table | None]  # tuned values by setting and method


@dataclass(frozen=True)
class Result:
    """Holds what a comparison came to: the table, its notes, and the cells that failed with why."""

    rows: Sequence[Row]
    notes: Sequence[str]
    failed: Mapping[Cell, str]

    @property
    def table(self) -> "DataFrame":
        """Return the rows as a pandas DataFrame with the columns of table.csv."""
        return frame(self.rows)


def result_of(
    comparison: Comparison, outcomes: Mapping[Cell, Run | str], chosen: Chosen, lost: Sequence[str]
) -> Result:
    """Collect what the runs that have ended come to, in the order of the comparison's cells; say if that is not all."""
    ended = [(cell, outcomes[cell]) for cell in comparison.cells if cell in outcomes]
    runs = {cell: outcome for cell, outcome in ended if isinstance(outcome, Run)}
    failed = {cell: outcome for cell, outcome in ended if isinstance(outcome, str)}
    budgets = budgets_of(runs, comparison.budget)
    rows = rows_of(runs, budgets, {key: point for key, point in chosen.items() if point}, comparison.target)
    notes = footnotes(rows, [*remarks(comparison), *lost, *(f"failed: {named(c)}: {why}" for c, why in failed.items())])
    if len(ended) < len(comparison.cells):
        notes.insert(0, f"not complete: {len(runs)} of {len(comparison.cells)} runs are in this table so far.")
    return Result(rows, notes, failed)


def write_table(result: Result, out: Path) -> None:
    failed = {str(cell.folder): why for cell, why in result.failed.items()}
    try:
        write_atomically(out / "table.csv", as_csv(result.rows).encode())
        write_atomically(out / "table.json", json.dumps(as_table(result.rows, result.notes, failed), indent=1).encode())
        write_atomically(out / "table.md", as_markdown(result.rows, result.notes).encode())
        write_atomically(out / "table.tex", as_latex(result.rows, result.notes).encode())
    except OSError as error:
        raise RunError(f"cannot write the table to {out}: {error.strerror}; --resume goes on from here") from error


def draw_figures(result: Result, runs: Mapping[Cell, Run], comparison: Comparison, out: Path) -> None:
    """Draw the figures of what has ended, where anything has."""
    if result.rows:
        try:
            draw(
                result.rows, runs, out / "figures", methods=comparison.methods, sweep=comparison.sweep,
                target=comparison.target,
            )  # fmt: skip
        except OSError as error:
            raise RunError(f"cannot write to {out / 'figures'}: {error.strerror}; the tables are written") from error


def remarks(comparison: Comparison) -> list[str]:
    """Say what the budget and the tuning were."""
    lines = []
    if comparison.target is not None:
        lines.append(f"target: {comparison.target:g} of the main metric.")
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


def named(cell: Cell) -> str:
    return f"{cell.setting}, {cell.method}, seed {cell.seed}"


def as_text(point: Table) -> str:
    return ",".join(f"{key}={value}" for key, value in point.items())
