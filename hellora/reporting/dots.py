"""Draw dots with their intervals, in rows by name: a block of rows for each setting, a colour for each method."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go

from hellora.reporting.charts import figure, text, titled

# By the mark of a row; a cost that is only known to be more points there.
SYMBOLS = {"best": "star", "worse": "circle-open", "at least": "triangle-right-open"}
SIZES = {"best": 13, "at least": 11}
LONG = 22  # letters of a name that have room beside the plot on a phone
ROW_HEIGHT, LINE_HEIGHT, AROUND = 22, 16, 100  # pixels: of a row of one line, of each further line, above and below all


@dataclass(frozen=True)
class Dot:
    """A dot is a method's in a setting; `half` is half its interval, cut off where it is not `within`."""

    name: str
    value: float
    half: float | None
    colour: int
    mark: str = ""
    within: tuple[float, float] = (-math.inf, math.inf)  # what the value can be
    words: str = ""  # what is said of it where a pointer is over it


@dataclass(frozen=True)
class Block:
    """A block has the dots of a setting, under its name where there is one."""

    name: str
    dots: Sequence[Dot]


def dot_chart(blocks: Sequence[Block], x_title: str, zero: bool = False) -> go.Figure:
    """Draw the blocks below each other over one axis, which is where the dots are; `zero`: with a line at 0."""
    rows: list[tuple[str, Dot | None]] = []
    for block in blocks:
        rows += [(f"<b>{in_lines(block.name)}</b>", None)] if block.name else []
        rows += [(in_lines(dot.name), dot) for dot in block.dots]
    traces = []
    for colour in dict.fromkeys(dot.colour for _, dot in rows if dot):
        mine = [(place, dot) for place, (_, dot) in enumerate(rows) if dot and dot.colour == colour]
        traces.append(trace_of([place for place, _ in mine], [dot for _, dot in mine]))
    lines = max((label.count("<br>") for label, _ in rows), default=0)
    return figure(
        traces,
        xaxis=titled(x_title, zeroline=zero),
        yaxis={
            "tickmode": "array",
            "tickvals": list(range(len(rows))),
            "ticktext": [label for label, _ in rows],
            "range": [len(rows) - 0.5, -0.5],
            "automargin": True,
        },
        showlegend=False,
        height=AROUND + len(rows) * (ROW_HEIGHT + LINE_HEIGHT * lines),
    )


def trace_of(places: Sequence[int], dots: Sequence[Dot]) -> Any:
    """Draw the dots of one method."""
    up, down = [], []
    for dot in dots:
        low, high = dot.within
        up.append("none" if dot.half is None else min(dot.half, high - dot.value))
        down.append("none" if dot.half is None else min(dot.half, dot.value - low))
    return go.Scatter(
        name=text(dots[0].name),
        x=[dot.value for dot in dots],
        y=list(places),
        mode="markers",
        marker={
            "symbol": [SYMBOLS.get(dot.mark, "circle") for dot in dots],
            "size": [SIZES.get(dot.mark, 9) for dot in dots],
            "line": {"width": 2},
            "opacity": 1,
        },
        error_x={"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 2, "width": 5},
        meta={"colour": dots[0].colour, "mark": True},
        text=[text(dot.words) for dot in dots],
        hovertemplate="%{text}<extra></extra>",
    )


def in_lines(name: str) -> str:
    """Break a long name into lines."""
    return "<br>".join(text(part) for part in wrap(name, LONG)) or text(name)
