"""A run as a notebook shows it: what it came to in a table, and the curves of its report as small pictures.

The pictures are SVG, so that a saved notebook stays small, and shows them wherever it is read, without a script.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from hellora.reporting.overview import facts
from hellora.reporting.quality import quality_sections
from hellora.reporting.record import RunRecord

COLOURS = ("#2f7fc1", "#c8641b")  # to be told apart on white and on black
DASHES = ("", "5 3")
WIDTH, HEIGHT = 360, 220  # in pixels
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 34, 36  # margins around the axes
TICKS = 4  # about so many on an axis
PICTURES = 2


def html_of(run: RunRecord) -> str:
    """Return the HTML that shows a run in a notebook, with a picture of its main metric and one of its loss."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(value)}</td></tr>'
        for name, value in facts(run)
    )
    drawn = [
        svg(section.title, section.views[0].figure) for section in quality_sections(run)[:PICTURES] if section.views
    ]
    pictures = f'<div style="display:flex;flex-wrap:wrap;gap:1em">{"".join(drawn)}</div>' if drawn else ""
    return f"<div><strong>{escape(run.name)}</strong><table>{rows}</table>{pictures}</div>"


def svg(title: str, figure: Any) -> str:
    """Draw the lines of a plotly figure of the report as SVG, with its axes and, of several lines, their names."""
    curves = [(trace.name, list(trace.x), list(trace.y)) for trace in figure.data]
    across = Scale([x for _, xs, _ in curves for x in xs], LEFT, WIDTH - RIGHT)
    upwards = Scale([y for _, _, ys in curves for y in ys], HEIGHT - BOTTOM, TOP)
    parts = [*axis_across(across, figure.layout.xaxis.title.text), *axis_upwards(upwards)]
    for place, (name, xs, ys) in enumerate(curves):
        points = [(across.of(x), upwards.of(y)) for x, y in zip(xs, ys, strict=True)]
        line = f'stroke="{COLOURS[place % 2]}" stroke-width="2" stroke-dasharray="{DASHES[place % 2]}" fill="none"'
        parts.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" {line}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{COLOURS[place % 2]}"/>' for x, y in points]
        if len(curves) > 1:
            at = LEFT + place * (WIDTH - LEFT) // len(curves)
            parts.append(f'<line x1="{at}" x2="{at + 18}" y1="25" y2="25" {line}/>{label(name, at + 22, 29, "start")}')
    return (
        f'<svg role="img" aria-label="{escape(title)} over rounds" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" style="max-width:100%;font:11px sans-serif" xmlns="http://www.w3.org/2000/svg">'
        f"{label(title, LEFT, 12, 'start', bold=True)}{''.join(parts)}</svg>"
    )


class Scale:
    """Places values between two ends of a picture; its ticks are round numbers."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        low, high = min(values), max(values)
        room = (high - low) or abs(high) or 1.0
        step = 10 ** math.floor(math.log10(room / TICKS))
        self.step = step * next(factor for factor in (1, 2, 5, 10) if room / (step * factor) <= TICKS)
        self.low = math.floor(low / self.step + 1e-9) * self.step
        self.high = max(math.ceil(high / self.step - 1e-9) * self.step, self.low + self.step)
        self.begin, self.end = begin, end

    def of(self, value: float) -> float:
        """Return the place of a value, in pixels."""
        place: float = self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)
        return place

    @property
    def ticks(self) -> list[float]:
        return [self.low + place * self.step for place in range(round((self.high - self.low) / self.step) + 1)]


def axis_across(scale: Scale, title: str) -> list[str]:
    """Draw the axis at the foot, of rounds, with its title; what was before round 0 is the start."""
    names = {tick: "start" if tick == -1 else f"{tick:g}" for tick in scale.ticks if tick >= -1}
    ticks = [label(name, scale.of(tick), HEIGHT - BOTTOM + 14, "middle") for tick, name in names.items()]
    return [*ticks, label(title, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "middle")]


def axis_upwards(scale: Scale) -> list[str]:
    """Draw the axis at the left, with a line across at each tick."""
    found = []
    for tick in scale.ticks:
        y = scale.of(tick)
        line = f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
        found.append(f'{line} stroke="currentColor" stroke-opacity="0.2"/>')
        found.append(label(f"{tick:.10g}", LEFT - 6, y + 4, "end"))
    return found


def label(text: str, x: float, y: float, anchor: str, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight} fill="currentColor">{text}</text>'
