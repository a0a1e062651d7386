"""Classify a text, or a pair of texts, by an encoder with mean pooling and a linear head, or by the model's head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hellora.core.class_loss import ClassLoss, Weights
from hellora.core.exchange import Outputs
from hellora.data.settings import Columns
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.tasks import Batch, classification_metrics, classification_outputs
from hellora.tasks.common.texts import HeadType, TextTask


@dataclass(frozen=True)
class SequenceClassification(TextTask):
    """Classifies texts; `head_type` is mean_pooling (masked mean of the last hidden states, linear) or own."""

    head_type: HeadType = "mean_pooling"
    max_length: int = 128  # tokens; longer texts are cut
    class_weights: Weights = ()  # of the loss in training: a number per class, in their order, or "balanced"
    label_smoothing: float = 0.0  # of the labels in training, from 0 to below 1
    columns: ClassVar[Columns] = "text"
    pipeline: ClassVar[str] = "text-classification"

    def __post_init__(self) -> None:
        super().__post_init__()
        ClassLoss(self.class_weights, self.label_smoothing)  # checks them

    @property
    def class_loss(self) -> ClassLoss:
        """Return the loss that clients minimise."""
        return ClassLoss(self.class_weights, self.label_smoothing)

    @property
    def own_loss(self) -> str:
        return self.class_loss.named

    def load(self, settings: ModelSettings, labels: Sequence[str], seed: int, weights: bool = True) -> BaseModel:
        self.class_loss.check(labels)
        return super().load(settings, labels, seed, weights)

    def learned(self, outputs: Outputs, labels: Tensor | None) -> Outputs:
        return self.class_loss.of(outputs, labels)

    def score(self, logits: Tensor, batch: Batch) -> Outputs:
        return classification_outputs(logits, batch["labels"])

    def metrics(self, loss: float, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return classification_metrics(loss, predictions, references)
