"""Figures of a comparison for papers, as SVG and PDF with their fonts inside; the only door to matplotlib.

results      the main metric of each method in each setting, with its interval
curves       the main metric over rounds, the interval as a band
cost         rounds to the target, where one was asked for
sweep-KEY    the main metric over the values of a swept setting

A method has the same colour in all of them, which is the one that it has in the report. A star is the best of its
setting, a full dot cannot be told from it, an open one is worse; an open triangle is a cost that is more than that.
"""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hellora.comparing.runs import Cell, Run
from hellora.comparing.statistics import Row, curve_of
from hellora.comparing.sweep import Sweep, swept_settings
from hellora.comparing.target import COSTS
from hellora.core.metrics import SHARES, in_words
from hellora.record.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0b5fa5", "#b8480c", "#13795b", "#8a2f86", "#7a6200", "#3d4bb8", "#a3263f", "#4d5560")  # the report's
DASHES = ("-", "--", ":", "-.", (0, (8, 3)))  # as in the report: none is told apart by its colour alone
MARKS = ("o", "s", "D", "P", "^", "X")
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.markersize": 4,
    "legend.frameon": False,
    "text.parse_math": False,  # names are shown as they are
    "pdf.fonttype": 42,  # letters stay letters
    "svg.hashsalt": "hellora",  # the same results make the same file
}
PANELS, WIDTH = 4, 2.4  # panels beside each other, and the width of one in inches
MARGIN = 0.04  # beyond 0 and 1, where a share's interval goes further
BESIDE = 0.02  # between methods at the same value, of the way to the next one
Place = Callable[["Axes", Sequence[Row]], None]  # draws the rows of one setting


def draw(
    rows: Sequence[Row],
    runs: Mapping[Cell, Run],
    folder: Path,
    *,
    methods: Iterable[str],
    sweep: Sweep,
    target: float | None,
) -> None:
    """Draw all figures that there is anything to show in.

    Args:
        rows: the table
        runs: what it is made of, for the curves
        folder: where the files go
        methods: all that are compared, whose order is that of their colours
        sweep: values of the swept settings, for a figure of each
        target: for a line in the curves, and a figure of its cost; None = there is none

    Raises:
        OSError: they cannot be written.
    """
    from matplotlib import rc_context  # its import takes as long as a small run

    ended = {row.method for row in rows}
    styles = {method: style_of(place) for place, method in enumerate(methods) if method in ended}
    with rc_context(STYLE):
        height = 0.2 * len(styles)
        figures = {"results": panels(rows, 0.8 + height, lambda axes, mine: dots(axes, mine, styles))}
        figures["curves"] = panels(rows, 2.0, lambda axes, mine: curves(axes, mine, runs, styles, target), styles)
        if target is not None:
            name = "rounds_to_target"
            figures["cost"] = panels(rows, 0.8 + height, lambda axes, mine: dots(axes, mine, styles, name))
        for key, settings in swept_settings(sweep).items():
            if found := [row for row in rows if row.setting in settings]:
                figures[f"sweep-{key}"] = swept(key, settings, found, styles)
        for name, figure in figures.items():
            save(figure, folder, name)


def style_of(place: int) -> dict[str, Any]:
    """Return how a method is drawn by its place among all; counts without a common factor tell many apart."""
    ways = {"color": COLOURS, "linestyle": DASHES, "marker": MARKS}
    return {name: among[place % len(among)] for name, among in ways.items()}


def panels(rows: Sequence[Row], height: float, draw_in: Place, legend: Mapping[str, Any] | None = None) -> "Figure":
    """Draw a panel for each setting, over one axis where they have one metric; with the methods below all where they
    are not named at the side.
    """
    from matplotlib.figure import Figure

    settings = list(dict.fromkeys(row.setting for row in rows))
    columns = min(PANELS, len(settings))
    lines = -(-len(settings) // columns)
    more = 0.0 if legend is None else 0.3 + 0.16 * -(-len(legend) // columns)
    figure = Figure(figsize=(WIDTH * columns + 0.6, height * lines + more), layout="constrained")
    alike = legend is None or len({row.metric for row in rows}) == 1
    grid = list(figure.subplots(lines, columns, squeeze=False, sharey=alike).flat)
    for place, (axes, setting) in enumerate(zip(grid, settings, strict=False)):
        axes.set_title(setting)
        draw_in(axes, [row for row in rows if row.setting == setting])
        if alike and place % columns:
            axes.set_ylabel("")
    for unused in grid[len(settings) :]:
        unused.remove()
    if legend is not None:
        with_legend(figure, legend, columns)
        for axes in grid[: len(settings)] if alike else []:
            axes.set_ylim(cut(axes.get_ylim(), rows))
    return figure


def cut(limits: tuple[float, float], rows: Sequence[Row]) -> tuple[float, float]:
    """Return the limits of an axis without what the main metric cannot be: of few seeds an interval is wide."""
    if not {row.metric for row in rows} <= SHARES:
        return limits
    return max(limits[0], -MARGIN), min(limits[1], 1 + MARGIN)


def with_legend(figure: "Figure", styles: Mapping[str, Mapping[str, Any]], columns: int) -> None:
    """Put the methods below a figure."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], label=method, **style) for method, style in styles.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=max(1, columns))


def dots(axes: "Axes", rows: Sequence[Row], styles: Mapping[str, Mapping[str, Any]], name: str = "") -> None:
    """Draw a dot with its interval for each method, of a cost by its `name` or of the main metric."""
    for row in rows:
        column = name or row.metric
        if (found := row.values.get(column)) is not None:
            colour, mark = styles[row.method]["color"], row.mark(column)
            axes.errorbar(
                [found.mean],
                [list(styles).index(row.method)],
                xerr=None if found.half is None else [[found.half], [found.half]],
                color=colour,
                linestyle="none",
                capsize=2,
                marker={"best": "*", "at least": ">"}.get(mark, "o"),
                markersize=8 if mark == "best" else STYLE["lines.markersize"],
                markerfacecolor="white" if mark in ("worse", "at least") else colour,
            )
    axes.set_yticks(range(len(styles)), list(styles))
    axes.set_ylim(len(styles) - 0.5, -0.5)
    axes.set_xlabel(COSTS.get(name, metrics_of(rows)))
    if name:
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", integer=True)
    else:
        axes.set_xlim(cut(axes.get_xlim(), rows))
    axes.grid(axis="x", linewidth=0.4)


def metrics_of(rows: Sequence[Row]) -> str:
    return ", ".join(dict.fromkeys(in_words(row.metric) for row in rows))


def curves(
    axes: "Axes",
    rows: Sequence[Row],
    runs: Mapping[Cell, Run],
    styles: Mapping[str, Mapping[str, Any]],
    target: float | None,
) -> None:
    """Draw the main metric of each method over its rounds."""
    for row in rows:
        points = curve_of([runs[Cell(row.setting, row.method, seed)] for seed in row.seeds], row.metric)
        rounds, style = [place for place, _ in points], styles[row.method]
        axes.plot(rounds, [found.mean for _, found in points], **style)
        band = [(place, found.mean, found.half) for place, found in points if found.half is not None]
        low, high = ([mean + sign * half for _, mean, half in band] for sign in (-1, 1))
        axes.fill_between([place for place, *_ in band], low, high, color=style["color"], alpha=0.15, linewidth=0)
    if target is not None:
        axes.axhline(target, color="#53575e", linewidth=0.8)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("rounds finished")
    axes.set_ylabel(metrics_of(rows))
    axes.grid(linewidth=0.4)


def swept(
    key: str, settings: Mapping[str, Mapping[str, Any]], rows: Sequence[Row], styles: Mapping[str, Mapping[str, Any]]
) -> "Figure":
    """Draw the main metric of each method over the values of a setting, in the order in which they were given."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH * 1.6, 2.6 + 0.16 * len(styles)), layout="constrained")
    axes, names = figure.subplots(), list(settings)
    for i, (method, style) in enumerate(styles.items()):
        beside = BESIDE * (i - (len(styles) - 1) / 2)  # so that intervals do not hide each other
        mine = [(names.index(row.setting) + beside, row.values[row.metric]) for row in rows if row.method == method]
        halves = [math.nan if found.half is None else found.half for _, found in mine]
        axes.errorbar([place for place, _ in mine], [found.mean for _, found in mine], yerr=halves, capsize=2, **style)
    axes.set_xticks(range(len(names)), [str(settings[name][key]) for name in names])
    axes.set_xlabel(key)
    axes.set_ylabel(metrics_of(rows))
    axes.set_ylim(cut(axes.get_ylim(), rows))
    axes.grid(linewidth=0.4)
    with_legend(figure, styles, 2)
    return figure


def save(figure: "Figure", folder: Path, name: str) -> None:
    """Write a figure in both formats, without the time at which it was drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, undated in (("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
        file = io.BytesIO()
        figure.savefig(file, format=kind, metadata=undated)
        write_atomically(folder / f"{name}.{kind}", file.getvalue())
