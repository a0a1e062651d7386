"""Logit adjustment (Menon et al., ICLR 2021, arXiv 2007.07314) allows for a client's own classes (as in FedLC, arXiv
2209.00189).

    loss = CE(z + τ log π_k, y)   with  π_kc = (n_kc + a) / Σ_c (n_kc + a)

n_kc is how many examples of class c client k has, and a smooths. What a client lacks is not unlearned: the loss is
that of a model which knows how rare a class is here. With one class and little smoothing nothing is left to learn.
"""

from dataclasses import dataclass, replace

import torch
from torch.nn.functional import cross_entropy

from hellora.core.exchange import Outputs
from hellora.methods.demands import CLASSES, Demands
from hellora.methods.local import Local
from hellora.methods.strategies import LocalTraining

UNLABELLED = -100  # an example without a class, which has a loss of 0


@dataclass(frozen=True)
class LogitAdjustment(LocalTraining):
    """Takes the cross-entropy on logits that are moved by the logarithm of the client's class shares."""

    tau: float = 1.0  # τ; 0 is plain training
    added_count: float = 1.0  # a: examples that are added to the count of every class

    def __post_init__(self) -> None:
        if not self.tau >= 0 or not self.added_count > 0:
            raise ValueError("tau must not be negative, and added_count must be greater than 0")

    @property
    def demands(self) -> Demands:
        return Demands(needs=frozenset({CLASSES}))

    def outputs(self, local: Local, outputs: Outputs) -> Outputs:
        if self.tau == 0:
            return outputs
        labels = local.labels()
        if labels is None or outputs.logits is None or outputs.labels is None:
            raise ValueError("logit_adjustment needs a task that tells logits and labels, and data with labels")
        counts = torch.bincount(labels[labels >= 0], minlength=outputs.logits.shape[1]).float() + self.added_count
        shift = self.tau * (counts / counts.sum()).log().to(outputs.logits.device)
        losses = cross_entropy(
            outputs.logits.float() + shift, outputs.labels, reduction="none", ignore_index=UNLABELLED
        )
        return replace(outputs, loss_sums=losses)
