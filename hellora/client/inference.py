"""Say what an adapter predicts of examples, for a person."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hellora.client import not_finite
from hellora.client.evaluation import autocast, evaluation_batches, to_device
from hellora.core.errors import InputError
from hellora.core.exchange import Precision
from hellora.core.types import Adapter
from hellora.model.own_heads import class_names
from hellora.model.resident import BaseModel
from hellora.tasks import Encoded, Prediction, Task

Rows = npt.NDArray[np.int64]


@torch.no_grad()
def batch_logits(
    adapter: Adapter, base: BaseModel, kind: Task, encoded: Encoded, batch_size: int, precision: Precision = "fp32"
) -> Iterator[tuple[Rows, Tensor]]:
    """Yield what an adapter says of each batch of examples: which they are, and logits (rows, classes) in float32, on
    the CPU.
    """
    with base.adapted(adapter):
        for indices in evaluation_batches(encoded, batch_size):
            batch = to_device(kind.collate(base, [encoded.examples[i] for i in indices]), base.device)
            with autocast(base, precision):
                logits = kind.logits(base, batch)
            yield indices, logits.float().cpu()


def predict(
    adapter: Adapter,
    base: BaseModel,
    kind: Task,
    rows: Any,
    batch_size: int,
    labels: Sequence[str],
    precision: Precision = "fp32",
) -> list[Prediction]:
    """Return what an adapter says of each row, in their order; the head may have room for more than the `labels`.

    Language models answer by `Task.answer` instead.

    Raises:
        InputError: the model says nan.
    """
    encoded = kind.encode(base, rows)
    found: dict[int, Prediction] = {}
    for indices, logits in batch_logits(adapter, base, kind, encoded, batch_size, precision):
        if (bad := logits.isnan().any(-1)).any():
            row = indices[int(bad.nonzero()[0])] if len(logits) == len(indices) else indices[0]
            why = not_finite.in_model(base, adapter) or "its weights and the adapter are finite, not so its sums"
            raise InputError(f"row {row}: the model says nan, and predicts nothing: {why}")
        names, examples = class_names(labels, logits.shape[-1]), [encoded.examples[i] for i in indices]
        found |= dict(zip(indices.tolist(), kind.predictions(logits, examples, names), strict=True))
    return [found[row] for row in range(len(encoded))]
