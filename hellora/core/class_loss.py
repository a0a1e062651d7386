"""The cross-entropy that clients may minimise in place of the plain one: weighted by class, with smoothed labels.

    loss = Σ_i L_i / Σ_i w_{y_i}      L_i = −Σ_c w_c q_ic log p_ic      q_ic = (1 − ε) [c = y_i] + ε / C

That is torch's `CrossEntropyLoss(weight=w, label_smoothing=ε)`. "balanced" weights are scikit-learn's, n / (K n_c) with
the K classes that the client has; the weights of its examples then have the mean 1, which is that of a class it lacks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hellora.core.errors import InputError
from hellora.core.exchange import Outputs
from hellora.core.metrics import UNLABELLED

Weights = tuple[float, ...] | Literal["balanced"]


@dataclass(frozen=True)
class ClassLoss:
    """Weighs the loss of each example by its class, and smooths labels; as it comes it does neither."""

    weights: Weights = ()  # (classes,), in their order
    smoothing: float = 0.0  # ε

    def __post_init__(self) -> None:
        if self.weights != "balanced" and not all(weight > 0 for weight in self.weights):
            raise ValueError(f"class_weights must be above 0, not {min(self.weights)}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"label_smoothing must be from 0 to below 1, not {self.smoothing}")

    @property
    def named(self) -> str:
        """Name the settings that make it another loss than the plain one; "" where none does."""
        return " and ".join(
            filter(None, ["class_weights" * bool(self.weights), "label_smoothing" * (self.smoothing > 0)])
        )

    def check(self, labels: Sequence[str]) -> None:
        """Raise InputError unless there is a weight for each of the classes; where these are unknown there are none."""
        if self.weights and self.weights != "balanced" and labels and len(self.weights) != len(labels):
            raise InputError(
                f"task.class_weights has {len(self.weights)} numbers for {len(labels)} classes "
                f"({', '.join(labels[:10])}{' …' * (len(labels) > 10)}): give one each, in this order"
            )

    def of(self, plain: Outputs, labels: Tensor | None) -> Outputs:
        """Return outputs with this loss in place of the plain one; `labels` (examples,) are the client's, for what is
        balanced.

        Raises:
            ValueError: the task tells no logits and labels, or the client has no labels.
        """
        if not self.named:
            return plain
        if plain.logits is None or plain.labels is None:
            raise ValueError(f"task.{self.named} needs logits and labels")
        logits, of_class = plain.logits.float(), self.of_classes(labels, plain.logits.shape[1])
        weight = None if of_class is None else of_class.to(logits.device)
        losses = cross_entropy(
            logits, plain.labels, weight, ignore_index=UNLABELLED, reduction="none", label_smoothing=self.smoothing
        )
        if weight is None:
            return replace(plain, loss_sums=losses)
        has_class = plain.labels >= 0
        return replace(plain, loss_sums=losses, weights=torch.where(has_class, weight[plain.labels.clamp(min=0)], 1.0))

    def of_classes(self, labels: Tensor | None, classes: int) -> Tensor | None:
        """Return the weight of each class that the head has room for, (classes,); None where all weigh alike."""
        if not self.weights:
            return None
        if self.weights != "balanced":
            return torch.tensor([*self.weights, *[1.0] * (classes - len(self.weights))])
        if labels is None:
            raise ValueError("task.class_weights = 'balanced' needs data with labels")
        counts = torch.bincount(labels[labels >= 0], minlength=classes).float()
        return torch.where(counts > 0, counts.sum() / ((counts > 0).sum() * counts), 1.0)
