"""A notebook shows how a run goes: a bar with the time left, and a table of its rounds, in one place."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import Any

from hellora.core.exchange import ClientFailure, ClientUpdate
from hellora.experiments.experiment import Experiment
from hellora.experiments.setup import Setup
from hellora.record.answers import AnswerLine
from hellora.record.round_line import Line

Show = Callable[[str], None]  # puts HTML in the place of what was shown before
SHOWN = 10  # rounds of the table, the last ones


class NotebookProgress:
    """Shows a run in the output of a cell."""

    def __init__(self, show: Show | None = None) -> None:
        self.show = show or in_a_cell()
        self.title, self.notes, self.lines = "", list[str](), list[Line]()
        self.initial: Mapping[str, float] = {}
        self.rounds = self.done = self.first = self.asked = self.trained = 0
        self.began = 0.0

    def __enter__(self) -> "NotebookProgress":
        return self

    def __exit__(self, *_: object) -> None:
        """What is shown stays."""

    def loading(self, experiment: Experiment, folder: Path) -> None:
        self.title = f"{experiment.name} → {folder}"
        self.notes = ["loading model and data …"]
        self.draw()

    def noted(self, note: str) -> None:
        self.notes.append(note)
        self.draw()

    def started(self, setup: Setup, metrics: Mapping[str, float], first_round: int) -> None:
        self.notes = [*self.notes[1:], *setup.notes, *setup.base.notices]
        self.initial, self.rounds = metrics, setup.federation.rounds
        self.done = self.first = first_round
        self.began = time.monotonic()
        self.draw()

    def head_solved(self, metrics: Mapping[str, float]) -> None:
        """The metrics of the rounds say how good it is."""

    def round_started(self, clients: int) -> None:
        self.asked, self.trained = clients, 0

    def client_answered(self, answer: ClientUpdate | ClientFailure) -> None:
        self.trained += 1
        self.draw()

    def answered(self, round: int | None, answers: Sequence[AnswerLine]) -> None:
        """Answers are in answers.jsonl, and in the report."""

    def round_finished(self, line: Line) -> None:
        self.lines.append(line)
        self.done, self.asked = line["round"] + 1, 0
        self.draw()

    def draw(self) -> None:
        """Show it all anew."""
        notes = "".join(f"<div><small>{escape(note)}</small></div>" for note in self.notes)
        bar = f'<progress value="{self.done}" max="{self.rounds}"></progress> ' if self.rounds else ""
        said = " · ".join(filter(None, (self.title, self.time_left())))
        self.show(f"<div>{bar}{escape(said)}</div>{notes}{self.table()}")

    def time_left(self) -> str:
        """Say how many rounds are done, and how long the others take if they are like those done until now."""
        if not self.rounds:
            return ""
        words, here = f"{self.done} of {self.rounds} rounds", self.done - self.first
        if here and self.done < self.rounds:
            each = (time.monotonic() - self.began) / here
            words += f", {timedelta(seconds=round(each * (self.rounds - self.done)))} left"
        if self.asked and self.done < self.rounds:
            words += f" ({self.trained} of {self.asked} clients)"
        return words

    def table(self) -> str:
        """Return the last rounds as a table; the first row of all is what was before them."""
        if not self.initial:
            return ""
        names = [name for name in self.initial if name != "micro_f1"]
        measured: list[tuple[Any, Mapping[str, float]]] = [("before" if not self.first else "resumed", self.initial)]
        measured += [(line["round"], line["metrics"] or {}) for line in self.lines]
        heading = "".join(f"<th>{escape(name)}</th>" for name in ("round", *names))
        rows = "".join(
            f"<tr><td>{round}</td>{''.join(f'<td>{cell(values, name)}</td>' for name in names)}</tr>"
            for round, values in [*measured[:1], *measured[1:][-SHOWN:]]
        )
        return f"<table><tr>{heading}</tr>{rows}</table>"


def cell(values: Mapping[str, float], name: str) -> str:
    return f"{values[name]:.3f}" if name in values else ""


def in_a_cell() -> Show:
    """Return what shows HTML in the output of the notebook's cell that runs."""
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)

    def show(html: str) -> None:
        handle.update(HTML(html))

    return show
