"""These sections compare methods: what they came to in each setting, their paired differences, and how that holds up
over a sweep. Every method has one colour in all of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import plotly.graph_objects as go

from hellora.comparing.statistics import CLIENTS_OWN, REFERENCE, Interval, Row, difference
from hellora.comparing.sweep import Sweep, swept_settings
from hellora.comparing.table import BYTES, cell_text, headings, value_text
from hellora.core.metrics import LOWER_IS_BETTER, SHARES, in_words
from hellora.reporting.charts import FEW, Curve, line_chart
from hellora.reporting.dots import Block, Dot, dot_chart
from hellora.reporting.parts import Section, Table, View, missing
from hellora.reporting.quality import byte_unit

Colours = Mapping[str, int]  # of the methods


def at_the_end(rows: Sequence[Row], colours: Colours) -> Section:
    """Show each column of the comparison's table as dots with intervals, methods within settings, and the table."""
    id, title = "end", "At the end"
    if not rows:
        return missing(id, title, "None of these runs has ended.")
    columns = headings(rows)
    named = ["setting"] if any(row.setting for row in rows) else []
    shown = [
        [
            *([row.setting] if named else []),
            row.method,
            *("★ " * is_best(row, name) + cell_text(row, name) for name in columns),
        ]
        for row in rows
    ]
    table = Table([*named, "method", *columns.values()], shown)
    views = [
        View("seconds" if name == "seconds" else heading, dots_of(name, heading, rows, colours), table)
        for name, heading in columns.items()
        if name != "rounds" and any(name in row.values for row in rows)
    ]
    lead = (
        "The last round of runs that have ended: means over seeds, with 95 % intervals. ★ is the best of its setting; "
        "an open dot is worse, by the paired differences of the seeds; a full one cannot be told from the best, as "
        "nothing can of one seed."
    )
    return Section(id, title, lead, views, wide=True, open=True)


def is_best(row: Row, name: str) -> bool:
    return row.best and name == row.metric


def dots_of(name: str, heading: str, rows: Sequence[Row], colours: Colours) -> go.Figure:
    """Show a column of the comparison's table, a block for each setting."""
    shown = [row for row in rows if name in row.values]
    size, unit = byte_unit(max(row.values[name].mean for row in shown)) if name in BYTES else (1, heading)
    is_share = name in SHARES or name == "worst_client" or (name.startswith("group ") and shown[0].metric in SHARES)
    within = (0.0, 1.0 if is_share else math.inf)

    def dot(row: Row) -> Dot:
        found, own = row.values[name], " †" * (row.evaluated_on == CLIENTS_OWN)
        half = None if found.half is None else found.half / size
        words = f"{row.method}: {value_text(name, found)}"
        return Dot(row.method + own, found.mean / size, half, colours[row.method], row.mark(name), within, words)

    return dot_chart(blocks_of(shown, dot), unit)


def blocks_of(rows: Sequence[Row], dot: Callable[[Row], Dot]) -> list[Block]:
    settings = dict.fromkeys(row.setting for row in rows)
    return [Block(setting, [dot(row) for row in rows if row.setting == setting]) for setting in settings]


def differences(rows: Sequence[Row], colours: Colours) -> list[Section]:
    """Show the paired differences of the main metric to a method that the reader chooses; nothing of a single one."""
    methods = sorted({row.method: None for row in rows}, key=lambda method: method != REFERENCE)
    views = [view for method in methods if (view := differences_to(method, rows, colours)) is not None]
    lead = (
        "The main metric less that of the chosen method, at equal seeds: the mean difference with its 95 % interval. "
        "Where the interval includes 0, these seeds do not tell the two apart."
    )
    return [Section("differences", "Differences", lead, views, wide=True)] if views else []


def differences_to(method: str, rows: Sequence[Row], colours: Colours) -> View | None:
    """Show the differences of all other methods to one; None where there are none."""
    theirs = {row.measured: row for row in rows if row.method == method}
    found = {
        (row.setting, row.method): (row, pairs)
        for row in rows
        if row.method != method and row.measured in theirs
        if (pairs := difference(row.by_seed, theirs[row.measured].by_seed)) is not None
    }
    if not found:
        return None

    def dot(row: Row) -> Dot:
        _, pairs = found[row.setting, row.method]
        words = f"{row.method}: {pairs.mean:+.3f}, {verdict(row, pairs)}"
        return Dot(row.method, pairs.mean, pairs.half, colours[row.method], words=words)

    lines = [
        [row.setting, row.method, f"{pairs.mean:+.4f}", half_text(pairs), str(pairs.n), verdict(row, pairs)]
        for row, pairs in found.values()
    ]
    figure = dot_chart(blocks_of([row for row, _ in found.values()], dot), "difference", zero=True)
    columns = ["setting", "method", f"difference to {method}", "95 % interval", "pairs", ""]
    return View(f"to {method}", figure, Table(columns, lines))


def half_text(found: Interval) -> str:
    return "–" if found.half is None else f"± {found.half:.4f}"


def verdict(row: Row, pairs: Interval) -> str:
    """Say what a paired difference tells."""
    if pairs.half is None:
        return "one pair tells nothing"
    if abs(pairs.mean) <= pairs.half:
        return "not distinguishable"
    return "better" if (pairs.mean > 0) != (row.metric in LOWER_IS_BETTER) else "worse"


def sweeps(rows: Sequence[Row], sweep: Sweep, colours: Colours) -> list[Section]:
    """Show the main metric over the values of each swept setting, in their order."""
    found = []
    for key, settings in swept_settings(sweep).items():
        shown = [row for row in rows if row.setting in settings]
        names = [name for name in settings if any(row.setting == name for row in shown)]
        if names:
            values = [str(settings[name][key]) for name in names]
            found.append(swept(key, [(row, names.index(row.setting)) for row in shown], values, colours))
    return found


def swept(key: str, placed: Sequence[tuple[Row, int]], values: Sequence[str], colours: Colours) -> Section:
    """Show a curve for each method, of rows with their places among the values."""
    curves = []
    for method in dict.fromkeys(row.method for row, _ in placed):
        mine = [(place, row.values[row.metric]) for row, place in placed if row.method == method]
        means, halves = [found.mean for _, found in mine], [found.half for _, found in mine]
        curves.append(Curve(method, [float(place) for place, _ in mine], means, halves, colours[method]))
    metrics = dict.fromkeys(row.metric for row, _ in placed)
    chart = line_chart(
        curves, key, ", ".join(map(in_words, metrics)), within=(0, 1) if metrics.keys() <= SHARES else None
    )
    chart.update_xaxes(tickmode="array", tickvals=list(range(len(values))), ticktext=list(values), rangemode="normal")
    lines = [[row.method, values[place], value_text(row.metric, row.values[row.metric])] for row, place in placed]
    lead = "Means over seeds at the end of runs, with Student's 95 % interval; the values stand in their order."
    table = Table(["method", key, ", ".join(map(in_words, metrics))], lines)
    return Section(f"sweep-{key}", f"Over {key}", lead, [View("", chart, table)], wide=len(curves) > FEW)
