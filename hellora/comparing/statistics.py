"""Finished runs become rows: mean and 95 % interval per setting and method, and who beats random_layers.

interval      mean ± t(0.975, n − 1) · s / √n over n seeds, s with n − 1; none of one seed
difference    the same of the paired differences to `random_layers` at equal seeds
kept          the main metric divided by that of the setting `iid`, same method and seed
spread        the best client's accuracy less the worst's
lora adds     the main metric less that of the head alone, same seed: the run's own head as it was solved before round 0
              or, where it had none, the method `ridge_head`
uplink budget the run counts up to its last evaluated round with at most so many bytes sent up since its start
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hellora.core.metrics import LOWER_IS_BETTER, main_metric
from hellora.core.units import in_bytes

REFERENCE, HEAD_ALONE, IID = "random_layers", "ridge_head", "iid"  # methods and a setting with a meaning by their names
CLIENTS_OWN = "the clients' held-out examples"  # what runs.finish says of models that belong to one client


@dataclass(frozen=True, order=True)
class Cell:
    """Names one run of a comparison."""

    setting: str
    method: str
    seed: int


@dataclass(frozen=True)
class Run:
    """Holds a finished run as its folder tells it."""

    summary: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]

    @property
    def metric(self) -> str:
        """Return the main metric of the run's task."""
        return main_metric(self.summary["final"])


@dataclass(frozen=True)
class Interval:
    """Holds the mean over n seeds, with half the width of its 95 % interval where there is one."""

    mean: float
    half: float | None
    n: int


@dataclass(frozen=True)
class Row:
    """Tells of a method in a setting. `values` is by column: the metric, those that `task.metrics` asks for, which are
    `asked`, worst_client, group …, bytes, seconds, …
    """

    setting: str
    method: str
    metric: str
    seeds: tuple[int, ...]
    values: Mapping[str, Interval]
    evaluated_on: str
    asked: tuple[str, ...] = ()
    tuned: Mapping[str, Any] = field(default_factory=dict)
    best: bool = False  # the best mean of its setting, among what was measured on the same data
    above_reference: bool | None = None  # None: not known, or it is the reference


# ----------------------------------------------------------------------------------------------------------- statistics


def interval_of(values: Sequence[float]) -> Interval:
    """Compute the mean and Student's 95 % interval; one value has none."""
    from scipy.stats import t as student  # its import takes longer than a wrong name may take to be told

    n = len(values)
    half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else None
    return Interval(float(np.mean(values)), half, n)


def is_above(mine: Mapping[int, float], theirs: Mapping[int, float], lower_is_better: bool = False) -> bool | None:
    """Tell whether the interval of the paired differences (by seed) is all on the good side; None below two pairs."""
    sign = -1 if lower_is_better else 1
    differences = [sign * (mine[seed] - theirs[seed]) for seed in sorted(mine.keys() & theirs.keys())]
    found = interval_of(differences) if len(differences) > 1 else None
    return None if found is None or found.half is None else found.mean - found.half > 0


def uplink_budgets(runs: Mapping[Cell, Run]) -> dict[Cell, int]:
    """Find for each run the least uplink that any method's whole run took in its setting with its seed, in bytes."""
    least: dict[tuple[str, int], int] = {}
    alike = {cell: run for cell, run in runs.items() if run.summary["data"]["evaluated_on"] != CLIENTS_OWN}
    for cell, run in (alike or runs).items():
        key, total = (cell.setting, cell.seed), run.summary["uplink_bytes"]
        least[key] = min(total, least.get(key, total))
    return {cell: least[cell.setting, cell.seed] for cell in runs if (cell.setting, cell.seed) in least}


# ---------------------------------------------------------------------------------------------------- from runs to rows


def numbers(run: Run, budget: int | None = None) -> dict[str, float]:
    """Return what a run came to, by column; with a budget in bytes of uplink, what it had come to within it.

    Groups and clients are measured at the end only, so a run that the budget cuts short has none of them.
    """
    rounds, metrics = len(run.lines), run.summary["final"]
    if budget is not None:
        sent = np.cumsum([line["uplink_bytes"] for line in run.lines])
        within = [line for line, total in zip(run.lines, sent, strict=True) if total <= budget and line["metrics"]]
        rounds = within[-1]["round"] + 1 if within else 0
        metrics = within[-1]["metrics"] if within else run.summary["initial"]
    asked = [name for name in run.summary.get("asked_metrics", ()) if name in metrics]
    found = {name: metrics[name] for name in (run.metric, *asked)}
    if rounds == len(run.lines):
        if run.summary["worst_client"] is not None:
            found["worst_client"] = run.summary["worst_client"]
            found["spread"] = max(run.summary["clients"].values()) - run.summary["worst_client"]
        for group in run.summary["groups"]:
            if run.metric in group["metrics"]:
                found[f"group {name_of(group)}"] = group["metrics"][run.metric]
    if "solved" in run.summary and rounds:  # else what it came to is from before the head was solved
        found["lora_adds"] = metrics[run.metric] - run.summary["solved"][run.metric]
    peaks = [
        client["peak_bytes"]
        for line in run.lines[:rounds]
        for client in line["clients"].values()
        if "peak_bytes" in client
    ]
    if peaks:
        found["peak_bytes"] = max(peaks)
    for name in ("uplink_bytes", "downlink_bytes", "seconds"):
        found[name] = sum(line[name] for line in run.lines[:rounds])
    return found | {"rounds": rounds}


def name_of(group: Mapping[str, Any]) -> str:
    """Name a capacity group by its budget."""
    rank = group["rank"] if isinstance(group["rank"], int) else "/".join(map(str, group["rank"]))
    memory = f", {in_bytes(group['memory_bytes'])}" if group.get("memory_bytes") else ""
    return f"{group['layers']} {'layer' if group['layers'] == 1 else 'layers'}, rank {rank}{memory}"


def rows_of(
    runs: Mapping[Cell, Run],
    budgets: Mapping[Cell, int] | None = None,
    tuned: Mapping[tuple[str, str], Mapping[str, Any]] | None = None,
) -> list[Row]:
    """Make a row per setting and method, in the order in which they first occur among the finished runs."""
    found = {cell: numbers(run, budgets.get(cell) if budgets else None) for cell, run in runs.items()}
    for cell, values in found.items():
        at_home = found.get(Cell(IID, cell.method, cell.seed))
        metric = runs[cell].metric
        if cell.setting != IID and metric != "loss" and at_home and at_home.get(metric):
            values["kept"] = values[metric] / at_home[metric]
        alone = found.get(Cell(cell.setting, HEAD_ALONE, cell.seed))
        if cell.method == HEAD_ALONE:
            values.pop("lora_adds", None)
        elif alone and metric != "loss" and metric in alone:
            values.setdefault("lora_adds", values[metric] - alone[metric])
    rows = []
    for setting, method in dict.fromkeys((cell.setting, cell.method) for cell in runs):
        cells = sorted(cell for cell in runs if (cell.setting, cell.method) == (setting, method))
        metric = runs[cells[0]].metric
        columns = [name for name in found[cells[0]] if all(name in found[cell] for cell in cells)]
        rows.append(
            Row(
                setting=setting,
                method=method,
                metric=metric,
                seeds=tuple(cell.seed for cell in cells),
                values={name: interval_of([found[cell][name] for cell in cells]) for name in columns},
                evaluated_on=runs[cells[0]].summary["data"]["evaluated_on"],
                asked=tuple(name for name in runs[cells[0]].summary.get("asked_metrics", ()) if name in columns),
                tuned=(tuned or {}).get((setting, method), {}),
            )
        )
    return [marked(row, rows, found) for row in rows]


def marked(row: Row, rows: Sequence[Row], found: Mapping[Cell, Mapping[str, float]]) -> Row:
    """Mark the row: best of its setting, above random_layers. Only the same metric of equal test data compares."""
    lower = row.metric in LOWER_IS_BETTER

    def measured(row: Row) -> tuple[str, str, str]:
        return row.setting, row.metric, row.evaluated_on

    beside = [other for other in rows if measured(other) == measured(row)]
    whole = max(other.values[row.metric].n for other in beside)  # one that lacks seeds is not the best of all
    means = [other.values[row.metric].mean for other in beside if other.values[row.metric].n == whole]
    mine = row.values[row.metric]
    best = len(beside) > 1 and mine.n == whole and mine.mean == (min if lower else max)(means)
    above = None
    if row.method != REFERENCE and any(other.method == REFERENCE for other in beside):

        def by_seed(method: str) -> dict[int, float]:
            return {c.seed: v[row.metric] for c, v in found.items() if (c.setting, c.method) == (row.setting, method)}

        above = is_above(by_seed(row.method), by_seed(REFERENCE), lower)
    return Row(**{**vars(row), "best": best, "above_reference": above})
