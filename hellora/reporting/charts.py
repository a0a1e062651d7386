"""Draw the three kinds of plots, as plotly figures without colours: the page has those, for light and for dark.

A trace's `meta` says which colour is its own: {"colour": 2} is the third of the page's; a heat map has its scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

Numbers = Sequence[float | None] | npt.NDArray[Any]  # None is a gap
# So that nothing is told apart by colour alone. Colours are 8: their number, and that of the dashes, have no factor in
# common, so that 40 curves differ without their marks.
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x")
MANY = 40  # labels from which bars have no room beside each other, and no pattern in them
PATTERNS = ("", "/", "x", ".")
FEW = 8  # names that have room beside each other
HEIGHT = 340  # of a plot, in pixels
MARGIN = 0.04  # of a range of heights, above and below
ROW_HEIGHT, SMALLEST, LARGEST = 18, 280, 900  # of a heat map


@dataclass(frozen=True)
class Curve:
    """A curve is a line, with a band around it where `half` has half of its height."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    half: Sequence[float | None] = ()
    colour: int | None = None  # None: that of its place among the curves


@dataclass(frozen=True)
class Bars:
    """Has a bar for each label."""

    name: str
    x: Sequence[str]
    y: Numbers
    as_marks: bool = False  # a mark at the height of the bar, in its place


def text(plain: str) -> str:
    """Return text from data so that plotly shows it as it is: plotly reads tags."""
    return escape(plain, quote=False)


def titled(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": text(title)}, "automargin": True, **more}


def figure(traces: Sequence[Any], **layout: Any) -> go.Figure:
    """Make a figure of the traces, without plotly's own template."""
    figure = go.Figure(list(traces))
    figure.update_layout(template={}, **layout)
    return figure


def line_chart(
    curves: Sequence[Curve],
    x_title: str,
    y_title: str,
    from_zero: bool = False,
    within: tuple[float, float] | None = None,
) -> go.Figure:
    """Draw lines over a common axis, with their bands; `from_zero`: the heights are amounts. What of a band is not
    `within` two heights is not shown, so that it cannot press the lines together.
    """
    colours = [place if curve.colour is None else curve.colour for place, curve in enumerate(curves)]
    traces: list[Any] = [
        band(curve, i) for i, curve in zip(colours, curves, strict=True) if any(half is not None for half in curve.half)
    ]
    for i, curve in zip(colours, curves, strict=True):
        name = text(curve.name)
        traces.append(
            go.Scatter(
                name=name,
                x=list(curve.x),
                y=list(curve.y),
                mode="lines+markers" if len(curve.x) <= 60 else "lines",
                line={"dash": DASHES[i % len(DASHES)], "width": 2},
                marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 6},
                meta={"colour": i},
                cliponaxis=False,  # the first point lies on the axis
                hovertemplate=f"%{{y:.4g}} at %{{x:.4g}}<extra>{name}</extra>",
            )
        )
    places = [place for curve in curves for place in curve.x]
    steps = {"dtick": 1} if max(places, default=0) <= 10 and all(float(x).is_integer() for x in places) else {}
    legend = ROW_HEIGHT * len(curves) // 2 if len(curves) > FEW else 0
    return figure(
        traces,
        xaxis=titled(x_title, rangemode="tozero", **steps),
        yaxis=titled(y_title, rangemode="tozero" if from_zero else "normal", **cut(curves, within)),
        showlegend=len(curves) > 1,
        height=HEIGHT + legend,
    )


def cut(curves: Sequence[Curve], within: tuple[float, float] | None) -> dict[str, Any]:
    """Set the range of the heights where a band leaves `within`; else plotly finds it."""
    ends = [(y - (half or 0), y + (half or 0)) for c in curves for y, half in zip(c.y, c.half, strict=False)]
    low, high = min((low for low, _ in ends), default=0.0), max((high for _, high in ends), default=0.0)
    if within is None or (within[0] <= low and high <= within[1]):
        return {}
    low, high = max(low, within[0]), min(high, within[1])
    room = MARGIN * (high - low)
    return {"range": [low - room, high + room]}


def band(curve: Curve, colour: int) -> Any:
    """Draw a closed outline around where the curve has an interval; it lies behind all lines."""
    known = [
        (x, y - half, y + half) for x, y, half in zip(curve.x, curve.y, curve.half, strict=True) if half is not None
    ]
    outline = [(x, high) for x, _, high in known] + [(x, low) for x, low, _ in reversed(known)]
    return go.Scatter(
        name=text(f"{curve.name}, 95 %"),
        x=[x for x, _ in outline],
        y=[y for _, y in outline],
        mode="lines",
        line={"width": 0},
        fill="toself",
        hoverinfo="skip",
        showlegend=False,
        meta={"colour": colour, "band": True},
    )


def bar_chart(bars: Sequence[Bars], x_title: str, y_title: str) -> go.Figure:
    """Draw bars beside each other, or marks where they are too many; the labels are names, not numbers."""
    many = max(len(bar.x) for bar in bars) > MANY
    traces: list[Any] = []
    for i, bar in enumerate(bars):
        common = {
            "name": text(bar.name),
            "x": [text(label).replace(", ", ",<br>") for label in bar.x],
            "y": list(bar.y),
            "hovertemplate": f"%{{x}}: %{{y:.4g}}<extra>{text(bar.name)}</extra>",
        }
        if bar.as_marks or (many and len(bars) > 1):
            symbol = "line-ew" if bar.as_marks else SYMBOLS[i % len(SYMBOLS)]
            size, width = (8, 2 if bar.as_marks else 0) if many else (16, 4)
            marker = {"symbol": symbol, "size": size, "line": {"width": width}}
            traces.append(go.Scatter(mode="markers", marker=marker, meta={"colour": i, "mark": True}, **common))
        else:
            pattern = None if many else {"shape": PATTERNS[i % len(PATTERNS)], "solidity": 0.25}
            marker = {"pattern": pattern, "line": {"width": 0}}
            traces.append(go.Bar(marker=marker, meta={"colour": i}, **common))
    return figure(
        traces,
        xaxis=titled(x_title, type="category"),
        yaxis=titled(y_title, rangemode="tozero"),
        barmode="group",
        bargap=0 if many else 0.2,
        showlegend=len(bars) > 1,
    )


def lying_bars(bars: Bars, x_title: str) -> go.Figure:
    """Draw bars below each other, so that many names, or long ones, can be read."""
    name = text(bars.name)
    trace = go.Bar(
        name=name,
        x=list(bars.y),
        y=[text(label) for label in bars.x],
        orientation="h",
        marker={"line": {"width": 0}},
        meta={"colour": 0},
        hovertemplate=f"%{{y}}: %{{x:.4g}}<extra>{name}</extra>",
    )
    return figure(
        [trace],
        xaxis=titled(x_title, rangemode="tozero"),
        yaxis=titled("", type="category", autorange="reversed"),
        bargap=0.2,
        showlegend=False,
        height=120 + 24 * len(bars.x),
    )


def heat_map(
    z: npt.NDArray[Any],
    columns: Sequence[str],
    rows: Sequence[str],
    x_title: str,
    y_title: str,
    value: str,
) -> go.Figure:
    """Draw values (rows, columns), the first row at the top; nan is a blank."""
    trace = go.Heatmap(
        z=np.where(np.isfinite(z), z, np.nan).astype(np.float32),
        x=[text(label) for label in columns],
        y=[text(label) for label in rows],
        xgap=1 if len(columns) <= 40 else 0,
        ygap=1 if len(rows) <= 40 else 0,
        meta={"scale": "amount"},
        hoverongaps=False,
        colorbar={"title": {"text": text(value), "side": "right"}, "thickness": 12},
        hovertemplate=f"%{{y}}, {text(x_title)} %{{x}}: %{{z:.4g}}<extra></extra>",
    )
    return figure(
        [trace],
        xaxis=titled(x_title, type="category"),
        yaxis=titled(y_title, type="category", autorange="reversed"),
        height=min(LARGEST, max(SMALLEST, 120 + ROW_HEIGHT * len(rows))),
    )
