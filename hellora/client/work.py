"""Hold all that client work needs in one process."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hellora.client.encoding import encode_rows
from hellora.client.features import Features, sum_features, targets_of
from hellora.client.rules import shapes_of
from hellora.client.train import labels_of, make_optimizer, train_encoded
from hellora.core.algebra import new_adapter
from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate, TrainSettings
from hellora.methods.strategies import LocalTraining, Start
from hellora.model.resident import BaseModel
from hellora.tasks import Encoded, Task


@dataclass(frozen=True, eq=False)
class ClientWork:
    """Client work holds all that it needs in one process: the resident base, the task, and the clients' data."""

    base: BaseModel
    kind: Task
    data: Any  # datasets.Dataset with the task's columns
    parts: Sequence[npt.NDArray[np.int64]] | None  # the rows of each client, by id; None: all rows are one client's
    rules: Sequence[LocalTraining] = ()  # of local training, in order
    start: Start = field(default_factory=Start)
    settings: TrainSettings = field(
        default_factory=TrainSettings
    )  # by which tasks are expected to train: see `warm_up`

    def train(self, task: ClientTask) -> ClientUpdate:
        """Train one client on its own rows, or sum their features; raise what these raise."""
        encoded = self.encoded if self.parts is None else self.encoded.select(self.parts[task.client])
        if not task.sums:
            self.features.forget()
            labels = partial(self.labels_of, task.client)
            return train_encoded(task, self.base, self.kind, encoded, self.rules, labels)
        if (targets := self.targets) is None:
            raise ValueError("it has no labels, so that there are no classes to sum for")
        rows = np.arange(len(encoded)) if self.parts is None else self.parts[task.client]
        features = self.features.of(task.adapter, rows)
        return sum_features(task, self.base, self.start, features, targets[rows], targets_of(self.kind))

    def labels_of(self, client: int) -> Tensor | None:
        """Return the class of each row of a client, (rows,); None where there are no classes."""
        return self.labels if self.labels is None or self.parts is None else self.labels[self.parts[client]]

    @cached_property
    def features(self) -> Features:
        """Return what is known of features until a client trains again, so that several passes compute them once."""
        return Features(self.base, self.kind, self.encoded)

    @cached_property
    def encoded(self) -> Encoded:
        """Encode all rows, once for all clients and rounds."""
        return encode_rows(self.kind, self.base, self.data)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what a person should know of the rows as they are encoded."""
        note = self.encoded.note()
        return (note,) if note else ()

    @cached_property
    def labels(self) -> Tensor | None:
        """Return the class of each row, (rows,), for rules that ask for it; None where there are none."""
        return labels_of(self.data)

    @cached_property
    def targets(self) -> Tensor | None:
        """Return what a head that is solved is to say of each row: its class, or what the task has in its place."""
        found = self.kind.targets(self.data)
        return self.labels if found is None else found

    def attempt(self, task: ClientTask) -> ClientUpdate | ClientFailure:
        """Train; a client that raises is rejected with what it raised, and the round goes on."""
        try:
            return self.train(task)
        except Exception as error:
            return ClientFailure(task.client, "rejected", f"{type(error).__name__}: {error}")

    def keeps(self, task: ClientTask) -> bool:
        """Return True if a rule of local training keeps tensors from task to task."""
        if task.sums:
            return False
        shapes = shapes_of(task, self.base)
        return any(rule.declares(shapes).kept for rule in self.rules)

    def size(self, client: int) -> int:
        """Count the examples that a client has."""
        return len(self.data) if self.parts is None else len(self.parts[client])

    def rows(self, client: int) -> int | None:
        """Count the rows that a client's steps are made of; None where each is an example."""
        part = self.encoded if self.parts is None else self.encoded.select(self.parts[client])
        rows = self.kind.training_rows(self.base, part, 0)  # their number is the same for every seed
        return None if rows is part else len(rows)

    @property
    def row_tokens(self) -> int:
        """Count the tokens of the longest row that a step may have; 1 for images, which are not looked at."""
        lengths = self.encoded.lengths
        return 1 if lengths is None else self.kind.row_tokens(self.base, lengths)

    def warm_up(self) -> None:
        """Take a step on nothing: what libraries hold from then on is there before memory is measured."""
        base, spec = self.base, self.base.spec
        everything = np.ones((spec.num_layers, spec.max_rank), dtype=bool)
        for weight in base.net.parameters():
            weight.sum()  # weights in a file are read when they are first used
        try:
            with base.adapted(new_adapter(spec, base.initial_head(), 0), everything) as adapted:
                torch.autograd.backward(self.kind.outputs(base, self.kind.blank_batch(base, 4, 32)).loss_sums.sum())
                make_optimizer(adapted.parameters, self.settings).step()
        except Exception:  # a task that cannot say what its batches are like, a model that refuses an empty text
            return
