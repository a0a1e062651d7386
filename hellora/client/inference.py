"""Say what an adapter predicts of examples, for a person."""

from collections.abc import Sequence
from typing import Any

import torch

from hellora.client import not_finite
from hellora.client.evaluation import autocast, evaluation_batches, to_device
from hellora.core.errors import InputError
from hellora.core.exchange import Precision
from hellora.core.types import Adapter
from hellora.model.own_heads import class_names
from hellora.model.resident import BaseModel
from hellora.tasks import Prediction, Task


@torch.no_grad()
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
    with base.adapted(adapter):
        for indices in evaluation_batches(encoded, batch_size):
            examples = [encoded.examples[i] for i in indices]
            with autocast(base, precision):
                logits = kind.logits(base, to_device(kind.collate(base, examples), base.device)).float().cpu()
            if (bad := logits.isnan().any(-1)).any():
                row = indices[int(bad.nonzero()[0])] if len(logits) == len(indices) else indices[0]
                finite = "its weights and the adapter are finite, not so its sums"
                why = not_finite.in_model(base, adapter) or finite
                raise InputError(f"row {row}: the model says nan, and predicts nothing: {why}")
            names = class_names(labels, logits.shape[-1])
            found |= dict(zip(indices.tolist(), kind.predictions(logits, examples, names), strict=True))
    return [found[row] for row in range(len(encoded))]
