"""Classify a text, or a pair of texts, by an encoder with mean pooling and a linear head, or by the model's head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hellora.core.exchange import Outputs
from hellora.data.settings import Columns
from hellora.tasks import Batch, classification_metrics, classification_outputs
from hellora.tasks.common.texts import HeadType, TextTask


@dataclass(frozen=True)
class SequenceClassification(TextTask):
    """Classifies texts; `head_type` is mean_pooling (masked mean of the last hidden states, linear) or own."""

    head_type: HeadType = "mean_pooling"
    max_length: int = 128  # tokens; longer texts are cut
    columns: ClassVar[Columns] = "text"
    pipeline: ClassVar[str] = "text-classification"

    def score(self, logits: Tensor, batch: Batch) -> Outputs:
        return classification_outputs(logits, batch["labels"])

    def metrics(self, loss: float, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return classification_metrics(loss, predictions, references)
