"""An observer is told how a run goes: a terminal, a notebook."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from hellora.core.exchange import ClientFailure, ClientUpdate
from hellora.core.types import ClientProfile
from hellora.experiments.experiment import Experiment
from hellora.experiments.setup import Setup
from hellora.record.answers import AnswerLine
from hellora.record.round_line import Line
from hellora.server.backend import Backend, Order


class Progress(Protocol):
    """An observer wants to know how a run goes; every method may do nothing."""

    def loading(self, experiment: Experiment, folder: Path) -> None:
        """Note that data and model are about to be loaded."""

    def noted(self, note: str) -> None:
        """Note what a person has to know before the run goes on, such as a state that is damaged."""

    def started(self, setup: Setup, metrics: Mapping[str, float], first_round: int) -> None:
        """Note that they are loaded; `metrics` are those before round 0 or, of a run that is gone on with, the last."""

    def head_solved(self, metrics: Mapping[str, float]) -> None:
        """Note that the head is solved before round 0; `metrics` are those with it."""

    def round_started(self, clients: int) -> None:
        """Note that so many clients are asked to train, in a new round or a new attempt at it."""

    def client_answered(self, answer: ClientUpdate | ClientFailure) -> None:
        """Note that a client trained, or failed."""

    def answered(self, round: int | None, answers: Sequence[AnswerLine]) -> None:
        """Note what the model answers to the same prompts after a round, None before training; there are some."""

    def round_finished(self, line: Line) -> None:
        """Note that a round's line of `rounds.jsonl` is written, and its checkpoint."""


class ReportingBackend(Backend):
    """Tells `progress` of every answer that passes through a backend."""

    def __init__(self, backend: Backend, progress: Progress) -> None:
        self.backend, self.progress = backend, progress

    def clients(self) -> Sequence[ClientProfile]:
        return self.backend.clients()

    def train(self, orders: Sequence[Order]) -> Iterator[ClientUpdate | ClientFailure]:
        self.progress.round_started(len(orders))
        for answer in self.backend.train(orders):
            self.progress.client_answered(answer)
            yield answer
