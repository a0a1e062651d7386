"""Clients report their loss, as power-of-choice (Cho et al., arXiv 2010.01243, its variant rpow-d) wants to know it.

    F̂_k = mean of the losses of the client's examples, each as it was in the step that it was in

It costs nothing: these are the losses that it trains on, with what other rules make of them, while it moves. (The loss
at the end would take one more pass.) The sampler `power_of_choice` brings it along.
"""

from dataclasses import dataclass
from typing import Any

import torch

from hellora.core.exchange import Declared, Named, TensorSpec
from hellora.methods.demands import LOSS_REPORTED, Demands
from hellora.methods.local import Local, Shapes
from hellora.methods.strategies import LocalTraining


@dataclass(frozen=True)
class LocalLoss(LocalTraining):
    """Reports `loss`, one number: the mean per example (or supervised token) of what it trained on."""

    @property
    def demands(self) -> Demands:
        return Demands(promises=frozenset({LOSS_REPORTED}))

    def declares(self, shapes: Shapes) -> Declared:
        return Declared(report={"loss": TensorSpec((), torch.float64)})

    def end(self, local: Local, carry: Any) -> tuple[Named, Named]:
        return {"loss": torch.tensor(local.loss_sum / local.weight_sum, dtype=torch.float64)}, {}
