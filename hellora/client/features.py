"""Compute the features of a client's examples, and what it sums of them.

An example has the same features, bit for bit, whoever has it and whatever stands beside it: every batch has
BATCH examples of one length, where there are lengths, so that all batches of a length have the same shape and no
padding; what is left of a length is filled up with examples of others, or those that are there already. That holds for
the same number of threads and kind of device.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from hellora.client.evaluation import autocast, to_device
from hellora.core.errors import InputError
from hellora.core.exchange import ClientTask, ClientUpdate, Declared, Named, problem_with_named
from hellora.core.state import owned, select
from hellora.core.sums import BATCH, Grid, exponents
from hellora.core.types import Adapter
from hellora.data.settings import Columns
from hellora.methods.closed_form import (
    HeadRows,
    HeadShape,
    Targets,
    left_out_of,
    losses_of,
    projected,
    projection,
    with_constant,
)
from hellora.methods.passes import EXPONENTS, LEFT_OUT, LOSSES, declared
from hellora.methods.strategies import Start
from hellora.model.linear_head import head_inputs, linear_head
from hellora.model.resident import BaseModel
from hellora.tasks import Encoded, Task

OTHER_TARGETS: dict[Columns, Targets] = {"text_labels": "labels", "text_numbers": "numbers"}


def targets_of(kind: Task) -> Targets:
    """Return what the head of a task says of an example."""
    return OTHER_TARGETS.get(kind.columns, "classes")


class Features:
    """Compute features of encoded examples, each once, until the adapter changes."""

    def __init__(self, base: BaseModel, kind: Task, encoded: Encoded) -> None:
        self.base, self.kind, self.encoded = base, kind, encoded
        self.adapter = b""  # a digest
        self.known = np.zeros(len(encoded), dtype=bool)
        self.values = torch.empty(0)

    def of(self, adapter: Adapter, rows: npt.NDArray[np.int64]) -> Tensor:
        """Return what the head is given of these examples, with the whole adapter merged in: float32 (rows, d)."""
        digest = hashlib.sha256()
        for name, tensor in sorted(adapter.tensors().items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        if digest.digest() != self.adapter:
            self.forget()
            self.adapter = digest.digest()
        if not self.known[rows].all():
            self.compute(adapter, rows[~self.known[rows]])
        return self.values[rows]

    def forget(self) -> None:
        self.adapter, self.values = b"", torch.empty(0)
        self.known[:] = False

    @torch.no_grad()
    def compute(self, adapter: Adapter, rows: npt.NDArray[np.int64]) -> None:
        _, module = linear_head(self.base)
        if not len(self.values):
            self.values = torch.empty(len(self.encoded), module.in_features)
        whole = Adapter(adapter.pairs, self.base.initial_head(), adapter.residual)
        with self.base.adapted(whole), head_inputs(module) as seen:
            for batch in batches_of_one_length(self.encoded, rows, ~self.known):
                examples = [self.encoded.examples[i] for i in np.resize(batch, BATCH).tolist()]
                with autocast(self.base, "fp32"):
                    self.kind.logits(self.base, to_device(self.kind.collate(self.base, examples), self.base.device))
                given = seen.pop()
                if seen or given.shape != (BATCH, module.in_features):
                    raise InputError(
                        f"method.start: the head of this model is given {tuple(given.shape)} for {BATCH} examples, and "
                        f"not one vector each: set method.start = 'none'"
                    )
                self.values[batch] = given[: len(batch)].float().cpu()
                self.known[batch] = True


def features_of(adapter: Adapter, base: BaseModel, kind: Task, encoded: Encoded) -> Tensor:
    """Return what the head is given of each example, with the whole adapter merged in: float32 (examples, d)."""
    return Features(base, kind, encoded).of(adapter, np.arange(len(encoded)))


def batches_of_one_length(
    encoded: Encoded, rows: npt.NDArray[np.int64], unknown: npt.NDArray[np.bool_]
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield batches of at most BATCH examples that have these rows; where a length does not fill its last batch, others
    that are unknown, too, go with them, for somebody will ask for them.
    """
    lengths = np.zeros(len(encoded), dtype=np.int64) if encoded.lengths is None else encoded.lengths
    spare = unknown.copy()
    spare[rows] = False
    for length in np.unique(lengths[rows]):
        wanted, others = rows[lengths[rows] == length], np.flatnonzero(spare & (lengths == length))
        of_length = np.concatenate([wanted, others[: -len(wanted) % BATCH]])
        yield from (of_length[start : start + BATCH] for start in range(0, len(of_length), BATCH))


def sum_features(
    task: ClientTask, base: BaseModel, start: Start, features: Tensor, labels: Tensor, targets: Targets = "classes"
) -> ClientUpdate:
    """Answer a task that asks for sums: `features` (examples, d) and the class of each (examples,), negative where an
    example has none; of other `targets` (examples, labels) 1 or 0, or (examples, numbers).

    Raises:
        OffGridError: a feature does not fit the public grid; ValueError: the task brings what was not declared.
    """
    if targets == "classes":
        known = labels >= 0
        features, labels = features[known], labels[known]
    features = features.double()
    shape, expected = asked_for(task, base, start, len(labels), targets)
    if targets == "labels":  # a head may have room for more labels than there are: nothing has these
        labels = 2 * pad(labels, (0, shape.classes - labels.shape[1])) - 1
    if reason := problem_with_named(task.brief, expected.brief, "the server's brief"):
        raise ValueError(reason)
    brief = select(task.brief, "start")
    if "projection" in brief:
        seed, columns = brief["projection"].tolist()
        features = projected(features, projection(seed, columns, features.shape[1]))
    x = with_constant(features, shape.bias)
    rows = HeadRows(x, labels, shape, grid_of(brief, shape), task.seed)
    report: Named
    if task.sums == EXPONENTS:
        report = {EXPONENTS: exponents(rows.gridded)}
    elif task.sums == LOSSES:
        report = losses_of(rows, brief["weight"])
    elif task.sums == LEFT_OUT:
        report = left_out_of(rows, brief["weight"], brief["inverse"])
    else:
        report = start.sums(task.sums, rows, brief)
    return ClientUpdate(
        task.round, task.client, len(labels), Adapter({}), report=owned(report, "start"), attempt=task.attempt
    )


def asked_for(
    task: ClientTask, base: BaseModel, start: Start, examples: int, targets: Targets = "classes"
) -> tuple[HeadShape, Declared]:
    """Return the shape of the head that a task asks sums for, and the named tensors of its pass.

    Raises:
        ValueError: there is no such pass, or no such projection.
    """
    _, module = linear_head(base)
    if not start.passes:
        raise ValueError("the run solves no head, so that nothing is summed")
    if task.sums not in (EXPONENTS, LOSSES, LEFT_OUT, *start.passes):
        raise ValueError(f"{start.name} has no pass {task.sums[:40]!r}")
    columns = module.in_features
    if (told := select(task.brief, "start").get("projection")) is not None:
        columns = int(told.flatten()[-1])
        if not 0 < columns < module.in_features:
            raise ValueError(f"features are projected to {columns} numbers, and have {module.in_features}")
    shape = HeadShape(columns, module.out_features, module.bias is not None, targets)
    return shape, declared(start, task.sums, shape, examples, Grid(0, torch.ones(shape.on_grid)), told is not None)


def grid_of(brief: Named, shape: HeadShape) -> Grid:
    """Return the public grid; before it is known, one that nothing is put on."""
    if "bits" not in brief:
        return Grid(0, torch.ones(shape.on_grid, dtype=torch.float64))
    return Grid(int(brief["bits"]), brief["scales"])
