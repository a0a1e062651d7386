"""A comparison shows how far it is: a line for each run that has ended and, on a terminal, one for the run in progress
with its round and the time that is left for all.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.status import Status
from rich.text import Text

from hellora.comparing.runs import Cell
from hellora.core.exchange import ClientFailure, ClientUpdate
from hellora.experiments.setup import Setup
from hellora.record.round_line import Line
from hellora.runs.progress import TerminalProgress
from hellora.runs.terminal import say

UNDER = 2  # columns before what goes on below a line
SPINNER = 2  # columns that a moving sign takes at the beginning of a line


@dataclass
class Tally:
    """Counts the runs, and reckons from those done now how long those still to come will take."""

    total: int
    console: Console
    clock: Callable[[], float] = time.perf_counter
    done: int = 0  # runs, those done before among them
    worked: float = 0.0  # runs done now
    status: Status | None = None
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def __enter__(self) -> "Tally":
        if self.console.is_terminal:
            self.status = self.console.status(Text(f"{self.total} runs"))
            self.status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.status is not None:
            self.status.stop()

    def loading(self, cell: Cell, what: str) -> None:
        """Show which run is about to begin."""
        self.show(cell, what, "loading", self.left(0.0, self.total - self.done))

    def running(self, cell: Cell, what: str, round: int, first: int, rounds: int) -> None:
        """Show the run in progress: so many of its rounds are done, and now it began after the `first` of them."""
        left = self.left((round - first) / rounds, self.total - self.done - round / rounds)
        self.show(cell, what, f"round {round}/{rounds}", left)

    def show(self, cell: Cell, what: str, state: str, left: str) -> None:
        """Show the run in progress in one line."""
        if self.status is not None:
            width = self.console.width - SPINNER - 1
            line = in_progress(self.done + 1, self.total, cell, what, state, left, width)
            self.status.update(Text(line, no_wrap=True, overflow="ellipsis"))

    def finished(self, cell: Cell, what: str, outcome: Sequence[str], seconds: float | None) -> None:
        """Say what came of a run, as much as fits into a terminal's line; without `seconds`, it was not run now."""
        self.done += 1
        self.worked += seconds is not None
        took = "" if seconds is None else f"{seconds:.0f} s"
        left = self.left(0.0, self.total - self.done) if self.done < self.total else ""
        number = f"{self.done:>3}/{self.total}"
        for known in range(len(outcome), 0, -1):
            line = "  ".join(filter(None, [number, *names_of(cell, what), *outcome[:known], took, left]))
            if len(line) <= self.console.width or not self.console.is_terminal:
                break
        say(self.console, line, len(number) + UNDER)

    def left(self, part: float, to_come: float) -> str:
        """Say how long the runs to come will take if they are like those done now, with `part` of the one in progress;
        "" before that is known.
        """
        worked = self.worked + part
        return f"{in_time((self.clock() - self.began) / worked * to_come)} left" if worked else ""


class WatchedProgress(TerminalProgress):
    """Writes a run's lines into its log, and tells of every round and answer how far the run is."""

    def __init__(self, log: Console, tell: Callable[[int, int, int], None]) -> None:
        super().__init__(log)
        self.tell = tell  # how many rounds are done, after how many it went on now, and how many there are
        self.round = self.first = self.total = 0

    def started(self, setup: Setup, metrics: Mapping[str, float], first_round: int) -> None:
        super().started(setup, metrics, first_round)
        self.round = self.first = first_round
        self.total = setup.federation.rounds
        self.tell(self.round, self.first, self.total)

    def client_answered(self, answer: ClientUpdate | ClientFailure) -> None:
        super().client_answered(answer)
        self.tell(self.round, self.first, self.total)

    def round_finished(self, line: Line) -> None:
        super().round_finished(line)
        self.round = line["round"] + 1
        self.tell(self.round, self.first, self.total)


def in_progress(number: int, total: int, cell: Cell, what: str, state: str, left: str, width: int) -> str:
    """Say which run is in progress in one line; where that is wider than the terminal, less of its name."""
    names = names_of(cell, what)
    for known in (names, [cell.setting, cell.method], [cell.method], []):
        line = "  ".join(filter(None, [f"run {number}/{total}", *known, state, left]))
        if len(line) <= width:
            break
    return line


def names_of(cell: Cell, what: str) -> list[str]:
    return [part for part in (cell.setting, cell.method, what, f"seed {cell.seed}") if part]


def in_time(seconds: float) -> str:
    """Write a duration for a person."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
