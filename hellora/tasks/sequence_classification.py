"""Classify a text, or a pair of texts, by an encoder with mean pooling and a linear head, or by the model's head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hellora.core.class_loss import Weights
from hellora.core.exchange import Outputs
from hellora.data.settings import Columns
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.tasks import Batch, classification_metrics, classification_outputs
from hellora.tasks.common.class_losses import ClassTask
from hellora.tasks.common.texts import HeadType, TextTask


@dataclass(frozen=True)
class SequenceClassification(ClassTask, TextTask):
    """Classifies texts; `head_type` is mean_pooling (masked mean of the last hidden states, linear) or own."""

    head_type: HeadType = "mean_pooling"  # on the mean of the last states, or the model's own
    max_length: int = 128  # tokens; longer texts are cut
    class_weights: Weights = ()  # of the loss in training: a number per class, in their order, or "balanced"
    label_smoothing: float = 0.0  # of the labels in training, from 0 to below 1
    columns: ClassVar[Columns] = "text"
    pipeline: ClassVar[str] = "text-classification"

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.class_loss  # which checks its settings

    def load(self, settings: ModelSettings, labels: Sequence[str], seed: int, weights: bool = True) -> BaseModel:
        self.class_loss.check(labels)
        return super().load(settings, labels, seed, weights)

    def score(self, logits: Tensor, batch: Batch) -> Outputs:
        return classification_outputs(logits, batch["labels"])

    def metrics(self, loss: float, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return classification_metrics(loss, predictions, references)
