"""These sections show accuracy and loss over rounds, bytes and time: of one run, or of several with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hellora.comparing.statistics import interval_of
from hellora.core.metrics import LOWER_IS_BETTER, SHARES, in_words
from hellora.reporting.charts import FEW, Curve, line_chart
from hellora.reporting.parts import Section, Table, View, missing
from hellora.reporting.record import Line, RunRecord

UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))
BESIDE = {"accuracy": "macro_f1", "micro_f1": "macro_f1", "pearson": "spearman"}  # shown in one plot with a main one
START, MINUS_ONE = -1.0, "\u22121"  # where a run stands on an axis of rounds before it begins, as plotly writes it
NOT_TIMED = "There is no simulated time: the speed or link of a client is not known."


@dataclass(frozen=True)
class Axis:
    """Quality is held against an axis: where a run is on it before its first round, and after each."""

    label: Literal["rounds", "bytes", "simulated time", "time"]
    title: str
    divisor: float = 1.0

    def of(self, run: RunRecord) -> list[float]:
        """Return the run's places on the axis: (1 + rounds,)."""
        if self.label == "rounds":
            after = [float(line["round"] + 1) for line in run.lines]
        elif self.label == "bytes":
            after = [sum(both) for both in zip(run.total("uplink_bytes"), run.total("downlink_bytes"), strict=True)]
        elif self.label == "simulated time":
            after = [float(line["simulated_clock"]) for line in run.lines]
        else:
            after = run.total("seconds")
        return [0.0, *(value / self.divisor for value in after)]


def byte_unit(largest: float) -> tuple[int, str]:
    """Choose the unit in which numbers of bytes up to `largest` read well."""
    return next((size, name) for size, name in UNITS if largest >= size or size == 1)


def axes(runs: Sequence[RunRecord]) -> list[Axis]:
    """Return the axes that all runs have. Time is that of simulated devices, or of real clients."""
    size, unit = byte_unit(max(sum(run.total(name)[-1] for name in ("uplink_bytes", "downlink_bytes")) for run in runs))
    found = [Axis("rounds", "rounds finished"), Axis("bytes", f"{unit} sent, up and down", size)]
    if all(run.timed for run in runs):
        return [*found, Axis("simulated time", "simulated seconds")]
    return [*found, Axis("time", "seconds")] if all(run.real for run in runs) else found


def about_time(runs: Sequence[RunRecord]) -> str:
    """Say why there is no axis of time; "" where there is."""
    return "" if all(run.timed for run in runs) or all(run.real for run in runs) else NOT_TIMED


def measured(run: RunRecord, metric: str) -> list[float | None]:
    """Return a metric before the first round and after each, None where it was not measured."""
    return [run.initial.get(metric), *((line["metrics"] or {}).get(metric) for line in run.lines)]


def training_loss(line: Line) -> float | None:
    """Compute the mean of the clients' losses, by examples."""
    clients = [values for values in line["clients"].values() if values.get("loss") is not None]
    examples = sum(values["examples"] for values in clients)
    return sum(values["loss"] * values["examples"] for values in clients) / examples if examples else None


def quality_sections(run: RunRecord) -> list[Section]:
    """Show the main metric, where it is not the loss, with its companion, the loss, and what was asked for besides, of
    one run."""
    found = []
    if (metric := run.metric) != "loss":
        title, beside = in_words(metric), BESIDE.get(metric, metric)
        series = {in_words(name): measured(run, name) for name in (metric, beside)}
        found.append(quality_section(metric, title[0].upper() + title[1:], title, run, series))
    training = [None, *(training_loss(line) for line in run.lines)]
    series = {"on the test data": measured(run, "loss"), "while training": training}
    found.append(quality_section("loss", "Loss", "loss", run, series))
    return [*found, *(of_asked(name, i, run) for i, name in enumerate(run.asked))]


def of_asked(name: str, place: int, run: RunRecord) -> Section:
    """Show a metric that `task.metrics` asks for."""
    words = in_words(name)
    return quality_section(f"asked-{place}", words[0].upper() + words[1:], words, run, {words: measured(run, name)})


def quality_section(
    id: str, title: str, y_title: str, run: RunRecord, series: Mapping[str, Sequence[float | None]]
) -> Section:
    series = {name: values for name, values in series.items() if any(value is not None for value in values)}
    if not run.lines or not series:
        return missing(id, title, "Nothing is measured yet.")
    views = []
    for axis in axes([run]):
        of_rounds = axis.label == "rounds"
        x = by_number(run) if of_rounds else axis.of(run)
        x_title = "after round" if of_rounds else axis.title
        curves = []
        for name, values in series.items():
            known = [(place, value) for place, value in zip(x, values, strict=True) if value is not None]
            curves.append(Curve(name, [place for place, _ in known], [value for _, value in known]))
        rows = [
            [said_of(place), *("–" if values[i] is None else f"{values[i]:.4f}" for values in series.values())]
            for i, place in enumerate(x)
            if any(values[i] is not None for values in series.values())
        ]
        chart = line_chart(curves, x_title, y_title)
        if of_rounds:
            chart.update_xaxes(tick0=START, dtick=step_of(len(x)), labelalias={MINUS_ONE: said_of(START)})
        views.append(View(axis.label, chart, Table([x_title, *series], rows)))
    return Section(id, title, "", views)


def by_number(run: RunRecord) -> list[float]:
    """Return the places of a run on an axis of rounds by their numbers, from 0: where it begins, and each round."""
    return [START, *(float(line["round"]) for line in run.lines)]


def said_of(place: float) -> str:
    return "start" if place == START else f"{place:.6g}"


def step_of(count: int) -> int:
    """Choose how far apart the labels of so many rounds stand: 1, 2, 5, 10, …, and no more than 9 of them."""
    steps = (times * 10**power for power in range(9) for times in (1, 2, 5))
    return next(int(step) for step in steps if count <= 9 * step)


# ------------------------------------------------------------------------------------------------------- several runs


def group_curve(name: str, runs: Sequence[RunRecord], metric: str, axis: Axis, colour: int | None = None) -> Curve:
    """Average runs that differ in their seed, wherever all of them were measured, at their mean place on the axis; with
    half of Student's 95 % interval, where there is more than one.
    """
    count = min(len(run.lines) for run in runs) + 1
    values = [measured(run, metric)[:count] for run in runs]
    places = [axis.of(run)[:count] for run in runs]
    x, y, half = [], [], []
    for i in range(count):
        here = [row[i] for row in values]
        known = [value for value in here if value is not None]
        if len(known) == len(here):
            found = interval_of(known)
            x.append(float(np.mean([row[i] for row in places])))
            y.append(found.mean)
            half.append(found.half)
    return Curve(name, x, y, half, colour)


def plausible(metric: str, curves: Sequence[Curve]) -> tuple[float, float]:
    """Say between which values a metric is, or is worth showing: a loss as far above the means as they reach apart."""
    means = [mean for curve in curves for mean in curve.y]
    if metric in SHARES:
        return 0.0, 1.0
    lowest = 0.0 if metric in LOWER_IS_BETTER else min(0.0, *means)
    return lowest, 2 * max(means) - min(means)


def compared_quality(
    id: str,
    title: str,
    metric: str,
    groups: Mapping[str, Sequence[RunRecord]],
    colours: Mapping[str, int] | None = None,
) -> Section:
    """Show a metric of groups of runs, each by its name and in its colour. A run without a round is not in its group
    yet.
    """
    every = [run for runs in groups.values() for run in runs]
    begun = {name: [run for run in runs if run.lines] for name, runs in groups.items()}
    groups = {
        name: runs
        for name, runs in begun.items()
        if runs and all(any(value is not None for value in measured(run, metric)) for run in runs)
    }
    if not groups:
        return missing(id, title, "Nothing is measured yet.")
    views = []
    for axis in axes([run for runs in groups.values() for run in runs]):
        curves = [group_curve(name, runs, metric, axis, (colours or {}).get(name)) for name, runs in groups.items()]
        rows = [
            [curve.name, f"{place:.6g}", f"{mean:.4f}", "–" if half is None else f"± {half:.4f}"]
            for curve in curves
            for place, mean, half in zip(curve.x, curve.y, curve.half, strict=True)
        ]
        columns = ["runs", axis.title, metric, "95 % interval"]
        chart = line_chart(curves, axis.title, metric, within=plausible(metric, curves))
        views.append(View(axis.label, chart, Table(columns, rows)))
    lead = "Means over seeds, with Student's 95 % interval; of one seed there is none."
    return Section(id, title, f"{lead} {about_time(every)}".rstrip(), views, wide=len(groups) > FEW)
