"""What tasks whose examples have a class each have in common: the loss that clients minimise."""

from torch import Tensor

from hellora.core.class_loss import ClassLoss, Weights
from hellora.core.exchange import Outputs
from hellora.tasks import Task


class ClassTask(Task):
    """Weighs and smooths the loss in training. A task that extends it has these settings."""

    class_weights: Weights  # a number per class, in their order, or "balanced"
    label_smoothing: float  # from 0 to below 1

    @property
    def class_loss(self) -> ClassLoss:
        """Return the loss that clients minimise. Raise ValueError where its settings are none of one."""
        return ClassLoss(self.class_weights, self.label_smoothing)

    @property
    def own_loss(self) -> str:
        return self.class_loss.named

    def learned(self, outputs: Outputs, labels: Tensor | None) -> Outputs:
        return self.class_loss.of(outputs, labels)
