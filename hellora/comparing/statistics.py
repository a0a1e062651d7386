"""Finished runs become rows: mean and 95 % interval per setting and method, and who is above whom.

interval      mean ± t(0.975, n − 1) · s / √n over n seeds, s with n − 1; none of one seed
difference    the same of the paired differences to another method at equal seeds: to `random_layers`, to the best
kept          the main metric divided by that of the setting `iid`, same method and seed
spread        the best client's accuracy less the worst's
lora adds     the main metric less that of the head alone, same seed: the run's own head as it was solved before round 0
              or, where it had none, the method `ridge_head`
uplink budget the run counts up to its last evaluated round with at most so many bytes sent up since its start
target        what a run spent up to its first evaluated round that reached it; see hellora.comparing.target
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from hellora.comparing.runs import Cell, Run
from hellora.comparing.target import spent_until
from hellora.core.metrics import LOWER_IS_BETTER
from hellora.core.units import in_bytes

REFERENCE, HEAD_ALONE, IID = "random_layers", "ridge_head", "iid"  # methods and a setting with a meaning by their names
CLIENTS_OWN = "the clients' held-out examples"  # what runs.finish says of models that belong to one client


@dataclass(frozen=True)
class Interval:
    """Holds the mean over n seeds, with half the width of its 95 % interval where there is one.

    Where it is the cost of reaching a target, and some seeds never reached it, these count with all that they spent:
    then the mean is the least that it can be, and there is no interval.
    """

    mean: float
    half: float | None
    n: int
    never: int = 0  # of the n, how many did not reach the target


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
    by_seed: Mapping[int, float] = field(default_factory=dict)  # the main metric
    best: bool = False  # the best mean of its setting, among what was measured on the same data
    like_best: bool | None = None  # nothing tells it from the best; None: not known, or it is the best
    above_reference: bool | None = None  # None: not known, or it is the reference

    @property
    def measured(self) -> tuple[str, str, str]:
        """Return what two rows must have in common to be compared."""
        return self.setting, self.metric, self.evaluated_on

    def mark(self, name: str) -> Literal["best", "like best", "worse", "at least", ""]:
        """Say how the value of a column is marked: only of the main metric it is known what is best."""
        if self.values[name].never:
            return "at least"
        if name != self.metric:
            return ""
        return "best" if self.best else "worse" if self.like_best is False else "like best" if self.like_best else ""


# ----------------------------------------------------------------------------------------------------------- statistics


def interval_of(values: Sequence[float]) -> Interval:
    """Compute the mean and Student's 95 % interval; one value has none."""
    from scipy.stats import t as student  # its import takes longer than a wrong name may take to be told

    n = len(values)
    half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else None
    return Interval(float(np.mean(values)), half, n)


def difference(mine: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """Compute the mean of the paired differences (by seed), with its interval; None without a pair."""
    pairs = [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]
    return interval_of(pairs) if pairs else None


def is_above(mine: Mapping[int, float], theirs: Mapping[int, float], lower_is_better: bool = False) -> bool | None:
    """Tell whether the interval of the paired differences is all on the good side; None below two pairs."""
    found = difference(mine, theirs)
    if found is None or found.half is None:
        return None
    return (-found.mean if lower_is_better else found.mean) - found.half > 0


def curve_of(runs: Sequence[Run], metric: str) -> list[tuple[int, Interval]]:
    """Average a metric of runs that differ in their seed, before the first round (0) and after each, wherever all of
    them were measured.
    """
    rounds = [[run.summary["initial"], *(line["metrics"] or {} for line in run.lines)] for run in runs]
    each = [[metrics.get(metric) for metrics in metrics_of_run] for metrics_of_run in rounds]
    return [(place, interval_of(values)) for place, values in enumerate(zip(*each, strict=False)) if None not in values]


def budgets_of(runs: Mapping[Cell, Run], budget: str | int | float | None) -> dict[Cell, int] | None:
    """Return the bytes of uplink within which each run counts: so many, or what `uplink` comes to; None = all."""
    if budget is None:
        return None
    return dict.fromkeys(runs, budget) if isinstance(budget, int) else uplink_budgets(runs)


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
    target: float | None = None,
) -> list[Row]:
    """Make a row per setting and method, in the order in which they first occur among the finished runs.

    Args:
        runs: what has ended
        budgets: bytes of uplink within which each run counts; None = runs count whole
        tuned: values that were chosen, by setting and method
        target: what the main metric shall reach; None = what that costs is not asked
    """
    found = {cell: numbers(run, budgets.get(cell) if budgets else None) for cell, run in runs.items()}
    for cell, values in found.items():
        values |= held_against(cell, runs[cell].metric, found)
        if cell.method == HEAD_ALONE:
            values.pop("lora_adds", None)
    rows = []
    for setting, method in dict.fromkeys((cell.setting, cell.method) for cell in runs):
        mine = {cell: runs[cell] for cell in sorted(runs) if (cell.setting, cell.method) == (setting, method)}
        row = row_of(mine, found, (tuned or {}).get((setting, method), {}))
        rows.append(row if target is None else replace(row, values={**row.values, **costs_of(mine.values(), target)}))
    return [marked(row, rows) for row in rows]


def row_of(runs: Mapping[Cell, Run], found: Mapping[Cell, Mapping[str, float]], tuned: Mapping[str, Any]) -> Row:
    """Make the row of runs that differ in their seed."""
    first, run = next(iter(runs.items()))
    columns = [name for name in found[first] if all(name in found[cell] for cell in runs)]
    return Row(
        setting=first.setting,
        method=first.method,
        metric=run.metric,
        seeds=tuple(cell.seed for cell in runs),
        values={name: interval_of([found[cell][name] for cell in runs]) for name in columns},
        evaluated_on=run.summary["data"]["evaluated_on"],
        asked=tuple(name for name in run.summary.get("asked_metrics", ()) if name in columns),
        tuned=tuned,
        by_seed={cell.seed: found[cell][run.metric] for cell in runs},
    )


def held_against(cell: Cell, metric: str, found: Mapping[Cell, Mapping[str, float]]) -> dict[str, float]:
    """Hold a run against that of its method in the setting iid, and against that of the head alone, where it does not
    say itself what LoRA adds to its head.
    """
    at_home, alone = (found.get(Cell(*key, cell.seed)) for key in ((IID, cell.method), (cell.setting, HEAD_ALONE)))
    mine, new = found[cell], {}
    if metric == "loss":
        return {}
    if cell.setting != IID and at_home and at_home.get(metric):
        new["kept"] = mine[metric] / at_home[metric]
    if alone and metric in alone and "lora_adds" not in mine:
        new["lora_adds"] = mine[metric] - alone[metric]
    return new


def costs_of(runs: Iterable[Run], target: float) -> dict[str, Interval]:
    """Return what it cost runs that differ in their seed to reach a target, by column."""
    spent = [spent_until(run, target) for run in runs]
    never = sum(not reached for reached, _ in spent)
    found = {}
    for name in spent[0][1]:
        if all(name in costs for _, costs in spent):
            each = interval_of([costs[name] for _, costs in spent])
            found[name] = Interval(each.mean, None, each.n, never) if never else each
    return found


def marked(row: Row, rows: Sequence[Row]) -> Row:
    """Mark the row: best of its setting, or like it, above random_layers. Only the same metric of equal test data
    compares.
    """
    lower = row.metric in LOWER_IS_BETTER
    beside = [other for other in rows if other.measured == row.measured]
    whole = max(other.values[row.metric].n for other in beside)  # one that lacks seeds is not the best of all
    means = {o.method: o.values[row.metric].mean for o in beside if o.values[row.metric].n == whole}
    most = (min if lower else max)(means.values())
    best = len(beside) > 1 and means.get(row.method) == most
    seeds = {other.method: other.by_seed for other in beside}
    like_best = above = None
    if not best and len(beside) > 1:
        behind = is_above(seeds[next(name for name, mean in means.items() if mean == most)], row.by_seed, lower)
        like_best = None if behind is None else not behind
    if row.method != REFERENCE and REFERENCE in seeds:
        above = is_above(row.by_seed, seeds[REFERENCE], lower)
    return replace(row, best=best, like_best=like_best, above_reference=above)
