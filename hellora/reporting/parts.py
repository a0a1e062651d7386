"""A page is made of sections, each with one or more views of its subject, and every view with its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go


@dataclass(frozen=True)
class Table:
    """A table shows in numbers what a plot shows, for whoever cannot see it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left_out: int = 0  # rows that are not shown


@dataclass(frozen=True)
class View:
    """A view is one way of looking at a section's subject."""

    label: str
    figure: go.Figure
    table: Table


@dataclass(frozen=True)
class Steps:
    """The slider steps through the ranks of every round. `trained` has the places in the plot's rows of the clients
    that trained, `ranks` the bytes of (trained, layers) numbers, round after round.
    """

    rounds: Sequence[int]
    trained: Sequence[Sequence[int]]
    ranks: bytes
    dtype: str  # u1 or u2, as numpy has it
    layers: int
    clients: Sequence[str]


@dataclass(frozen=True)
class Section:
    """A section shows one subject: in plots or, where its subject are texts, in a table alone. Without either it is
    left out of the page, but for a line that says `why`.
    """

    id: str
    title: str
    lead: str
    views: Sequence[View] = ()
    steps: Steps | None = None
    texts: Table | None = None
    why: str = ""
    wide: bool = False  # its plot needs the whole width of a screen
    open: bool = False  # its numbers are shown from the beginning


@dataclass(frozen=True)
class Told:
    """A part of the story that a page begins with."""

    title: str
    headline: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Page:
    """A page holds all that is shown."""

    title: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    notes: Sequence[str] = ()
    ended: bool = True
    story: Sequence[Told] = ()


def missing(id: str, title: str, why: str) -> Section:
    return Section(id, title, "", why=why)
