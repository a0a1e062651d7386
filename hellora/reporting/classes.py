"""This section of one run shows how well each class is recognised, and what is taken for what."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hellora.core.per_class import confused_pairs
from hellora.reporting.charts import Bars, heat_map, lying_bars
from hellora.reporting.parts import Section, Table, View, missing
from hellora.reporting.record import RunRecord

MOST = 100  # classes that are shown
MOST_PAIRS = 20  # confused pairs that are drawn
LONGEST, OF_PAIR = 12, 9  # characters of a name in a plot, and of one of two; its table has it whole
UPRIGHT = 90  # pixels of the names below a matrix
Scores = Mapping[str, Mapping[str, float]]


def classes(run: RunRecord) -> list[Section]:
    """Show precision, recall and F1 of each class by the last model that was evaluated, how F1 came about, and what is
    taken for what; [] of tasks without classes."""
    id, title = "classes", "How well each class is recognised"
    if not (found := run.per_class):
        if "accuracy" not in run.initial:
            return []
        why = (
            "Many classes are recorded when the run has ended."
            if run.summary is None
            else "This run did not record it."
        )
        return [missing(id, title, why)]
    lead = f"After round {run.last_evaluated['round']}." if run.last_evaluated else ""
    views = [scores(found), *over_rounds(run), *taken(run.summary or {})]
    return [Section(id, title, lead, views, wide=len(found) > 20)]


def scores(found: Scores) -> View:
    """Show F1 as bars, and all scores as a table, of the classes that are recognised worst where there are many."""
    order = list(found)
    if len(order) > MOST:
        order = sorted(order, key=lambda name: found[name]["f1"])[:MOST]
    rows = [
        [name, *(f"{found[name][key]:.4f}" for key in ("precision", "recall", "f1")), str(found[name]["examples"])]
        for name in order
    ]
    table = Table(["class", "precision", "recall", "F1", "examples"], rows, left_out=len(found) - len(order))
    chart = lying_bars(Bars("F1", shortened(order), [found[name]["f1"] for name in order]), "F1")
    return View("F1", chart, table)


def over_rounds(run: RunRecord) -> list[View]:
    """Show F1 of each class after each round that was evaluated; [] of fewer than two, and of many classes."""
    lines = [line for line in run.lines if line.get("per_class")]
    if len(lines) < 2:
        return []
    names = list(dict.fromkeys(name for line in lines for name in line["per_class"]))
    rounds = [str(line["round"]) for line in lines]
    of_lines = [[line["per_class"].get(name, {}).get("f1") for line in lines] for name in names]
    values = np.array(of_lines, dtype=float)  # None becomes nan
    rows = [
        [name, *("–" if f1 is None else f"{f1:.4f}" for f1 in row)] for name, row in zip(names, of_lines, strict=True)
    ]
    chart = heat_map(values, rounds, shortened(names), "after round", "class", "F1")
    return [View("F1 over rounds", chart, Table(["class", *(f"after round {round}" for round in rounds)], rows))]


def taken(summary: Mapping[str, Any]) -> list[View]:
    """Show what is taken for what: the matrix of few classes, of more the pairs that are confused most; [] where that
    is not on record."""
    if "confusion" in summary:
        return matrices(summary["confusion"]["labels"], summary["confusion"]["counts"])
    if not (pairs := confused_pairs(summary)):
        return []
    table = Table(["class", "taken for", "examples"], [[name, other, str(count)] for name, other, count in pairs])
    first = pairs[:MOST_PAIRS]
    names = apart([f"{cut(name, OF_PAIR)} → {cut(other, OF_PAIR)}" for name, other, _ in first])
    chart = lying_bars(Bars("examples", names, [count for _, _, count in first]), "examples")
    return [View("most confused", chart, table)]


def matrices(names: Sequence[str], counts: Sequence[Sequence[int]]) -> list[View]:
    """Show a confusion matrix in shares of each class, and in examples."""
    numbers, shown = np.array(counts, dtype=float), shortened(names)
    true = numbers.sum(axis=1, keepdims=True)
    shares = np.divide(numbers, true, out=np.full_like(numbers, np.nan), where=true > 0)
    table = Table(
        ["class", *(f"as {name}" for name in names)],
        [[name, *map(str, row)] for name, row in zip(names, counts, strict=True)],
    )
    return [
        View(label, with_room(heat_map(values, shown, shown, "taken for", "class", unit)), table)
        for label, unit, values in (
            ("confusion", "share of the class", shares),
            ("confusion in examples", "examples", numbers),
        )
    ]


def with_room(chart: Any) -> Any:
    """Make a matrix so much higher that the names below it, which stand upright, take nothing from its rows."""
    return chart.update_layout(height=chart.layout.height + UPRIGHT)


def shortened(names: Sequence[str]) -> list[str]:
    """Cut names that are too long for a plot; those that then look alike are numbered."""
    return apart([cut(name, LONGEST) for name in names])


def cut(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def apart(names: Sequence[str]) -> list[str]:
    """Number names that look alike."""
    return [name if names.count(name) == 1 else f"{name} {i}" for i, name in enumerate(names, start=1)]
