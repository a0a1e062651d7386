"""Logit adjustment (Menon et al., ICLR 2021, arXiv 2007.07314) allows for a client's own classes, in three forms.

    prior    CE(z + τ log π_k, y)         with  π_kc = (n_kc + a) / Σ_c (n_kc + a)
    fedlc    CE(z − τ n_k^(−1/4), y)      over the classes that the client has; the others are masked
    fedrs    CE(z ∗ s_k, y)               with  s_kc = α where n_kc = 0, and 1 elsewhere

n_kc is how many examples of class c client k has, and a smooths. FedLC is Zhang et al., ICML 2022, arXiv 2209.00189;
FedRS, the restricted softmax, is Li and Zhan, KDD 2021. What a client lacks is not unlearned: the loss is that of a
model which knows how rare a class is here.

A client with one class learns next to nothing from `prior` with little smoothing, and nothing at all from `fedlc`: its
loss, as it reports it, is then exactly 0, and its update is what it received (but for weight decay and other rules).
"""

from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hellora.core.exchange import Outputs
from hellora.core.metrics import UNLABELLED
from hellora.methods.demands import CLASSES, REPLACES_LOSS, Demands
from hellora.methods.local import Local
from hellora.methods.strategies import LocalTraining

Adjustment = Literal["prior", "fedlc", "fedrs"]
OF: dict[str, tuple[Adjustment, ...]] = {
    "tau": ("prior", "fedlc"),
    "added_count": ("prior",),
    "absent_scale": ("fedrs",),
}


@dataclass(frozen=True)
class LogitAdjustment(LocalTraining):
    """Takes the cross-entropy on logits that are changed by how many examples of each class the client has."""

    tau: float = 1.0  # τ of prior and fedlc; 0 is plain training
    added_count: float = 1.0  # a of prior: examples that are added to the count of every class
    adjustment: Adjustment = "prior"
    absent_scale: float = 0.5  # α of fedrs, by which the logits of absent classes are multiplied; 1 is plain training

    def __post_init__(self) -> None:
        if not self.tau >= 0 or not self.added_count > 0:
            raise ValueError("tau must not be negative, and added_count must be greater than 0")
        if not 0 <= self.absent_scale <= 1:
            raise ValueError(f"absent_scale must be in [0, 1], not {self.absent_scale}")
        if self.adjustment not in get_args(Adjustment):
            raise ValueError(f"adjustment must be one of {', '.join(get_args(Adjustment))}, not {self.adjustment!r}")
        for each in fields(self):
            forms = OF.get(each.name, (self.adjustment,))
            if self.adjustment not in forms and getattr(self, each.name) != each.default:
                raise ValueError(
                    f"{each.name} is a setting of adjustment = {' or '.join(map(repr, forms))}, not of "
                    f"{self.adjustment!r}: remove it"
                )

    @property
    def demands(self) -> Demands:
        return Demands(needs=frozenset({CLASSES}), takes=frozenset({REPLACES_LOSS} if self.adjusts else ()))

    @property
    def adjusts(self) -> bool:
        """Return False if it is plain training."""
        return self.absent_scale != 1 if self.adjustment == "fedrs" else self.tau != 0

    def outputs(self, local: Local, outputs: Outputs) -> Outputs:
        if not self.adjusts:
            return outputs
        labels = local.labels()
        if labels is None or outputs.logits is None or outputs.labels is None:
            raise ValueError("logit_adjustment needs a task that tells logits and labels, and data with labels")
        counts = torch.bincount(labels[labels >= 0], minlength=outputs.logits.shape[1]).float()
        if not counts.any():  # no example has a class, so that each loss is 0 already
            return outputs
        logits = self.adjusted(outputs.logits.float(), counts)
        losses = cross_entropy(logits, outputs.labels, reduction="none", ignore_index=UNLABELLED)
        return replace(outputs, loss_sums=losses)

    def adjusted(self, logits: Tensor, counts: Tensor) -> Tensor:
        """Return the logits (rows, classes) of a client with `counts` (classes,) examples of each class."""
        if self.adjustment == "prior":
            counts = counts + self.added_count
            return logits + self.tau * (counts / counts.sum()).log().to(logits.device)
        if self.adjustment == "fedlc":
            return logits - self.tau * counts.pow(-0.25).to(logits.device)  # where there are 0 examples it is -inf
        return logits * torch.where(counts > 0, 1.0, self.absent_scale).to(logits.device)
