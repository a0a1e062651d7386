"""This section of one run shows how well each class is recognised, and what is taken for what."""

from collections.abc import Mapping, Sequence

import numpy as np

from hellora.reporting.charts import Bars, heat_map, lying_bars
from hellora.reporting.parts import Section, Table, View, missing
from hellora.reporting.record import RunRecord

MOST = 100  # classes that are shown
LONGEST = 16  # characters of a name in a plot; its table has it whole


def classes(run: RunRecord) -> list[Section]:
    """Show precision, recall and F1 of each class by the result of the run, and the confusion matrix of few classes; []
    of tasks without classes."""
    id, title = "classes", "How well each class is recognised"
    if "accuracy" not in run.initial and not (run.summary and run.summary.get("per_class")):
        return []
    if run.summary is None:
        return [missing(id, title, "Classes are measured when the run has ended.")]
    if not (found := run.summary.get("per_class")):
        return [missing(id, title, "Not recorded: the run is an older one, or its clients have models of their own.")]
    worst = min(found, key=lambda name: (not found[name]["examples"], found[name]["f1"]))
    lead = f"By the model of the last round. Lowest F1: {worst}, {found[worst]['f1']:.3f}."
    views = [scores(found)]
    if confusion := run.summary.get("confusion"):
        counts, names, shown = np.array(confusion, dtype=float), list(found), shortened(list(found))
        true = counts.sum(axis=1, keepdims=True)
        shares = np.divide(counts, true, out=np.full_like(counts, np.nan), where=true > 0)
        table = Table(
            ["class", *(f"as {name}" for name in names)],
            [[name, *(str(int(n)) for n in row)] for name, row in zip(names, counts, strict=True)],
        )
        views += [
            View(label, heat_map(values, shown, shown, "taken for", "class", unit), table)
            for label, unit, values in (("share of the class", "share", shares), ("examples", "examples", counts))
        ]
    return [Section(id, title, lead, views, wide=len(found) > 20)]


def scores(found: Mapping[str, Mapping[str, float]]) -> View:
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


def shortened(names: Sequence[str]) -> list[str]:
    """Cut names that are too long for a plot; those that then look alike are numbered."""
    cut = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
    return [name if cut.count(name) == 1 else f"{name} {i}" for i, name in enumerate(cut, start=1)]
