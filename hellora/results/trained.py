"""Exports and model cards need to know what a run has come to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hellora.core.state import ServerState
from hellora.experiments.experiment import Experiment
from hellora.model.origin import Origin
from hellora.model.own_heads import class_names
from hellora.model.resident import BaseModel


@dataclass(frozen=True, eq=False)
class Trained:
    """Holds what a run has come to after some of its rounds: what is exported, and what a card says of it."""

    experiment: Experiment
    base: BaseModel
    labels: tuple[str, ...]  # () where there is no label
    state: ServerState
    initial: Mapping[str, float]  # metrics before round 0
    lines: Sequence[Mapping[str, Any]]  # of rounds.jsonl, the finished rounds
    clients: Sequence[str] = field(default=())  # names by id, where clients have names
    origin: Origin = field(default_factory=Origin)  # of the base
    turns: bool = False  # it learned conversations, so that a prompt is a user's turn

    @property
    def classes(self) -> tuple[str, ...]:
        """Name the class of each logit; a head may have room for more than the data has."""
        return class_names(self.labels, self.experiment.model.classes or len(self.labels))
