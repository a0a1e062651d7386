"""Clients with few classes take small steps together (ours): label skew damps what a client moves.

    θ_k ← θ^t + γ_k (θ_k − θ^t)      γ_k = 1 − (1 − least) / K_k      K_k = exp(−Σ_c π_kc log π_kc)

π_k are the client's class shares, and K_k is to how many classes they amount: 1 where there is one, C where all are
alike. What a client of one class learns pulls all features towards that class, and the larger the cohort's steps, the
less of it is what clients have in common; with all classes the full step counts (γ_k near 1). A client knows π_k, so
nobody has to be told how skewed the split is. Optimizers that scale their steps, such as Adam, would undo a smaller
loss; so it is the result that is damped.
"""

from dataclasses import dataclass
from typing import Any

import torch

from hellora.core.exchange import Declared, Named
from hellora.methods.demands import CLASSES, Demands
from hellora.methods.local import Local, Shapes
from hellora.methods.strategies import LocalTraining


@dataclass(frozen=True)
class SkewDamping(LocalTraining):
    """Lets a client keep less of what it moved, the fewer classes its examples amount to."""

    least: float = 0.25  # γ of a client with one class; 1 is plain training

    def __post_init__(self) -> None:
        if not 0 < self.least <= 1:
            raise ValueError(f"least must be above 0 and at most 1, not {self.least}")

    @property
    def demands(self) -> Demands:
        return Demands(needs=frozenset({CLASSES}))

    def declares(self, shapes: Shapes) -> Declared:
        return Declared(scratch_bytes=sum(spec.num_bytes for spec in shapes.trained_tensors().values()))

    def begin(self, local: Local) -> Any:
        return local.received if self.least < 1 else None

    def end(self, local: Local, carry: Any) -> tuple[Named, Named]:
        if self.least < 1:
            kept = 1 - (1 - self.least) / effective_classes(local)
            for name, parameter in local.parameters.items():
                parameter.data.lerp_(local.received[name].to(parameter.device), 1 - kept)
        return {}, {}


def effective_classes(local: Local) -> float:
    """Return to how many classes a client's examples amount: exp of the entropy of their shares."""
    if (labels := local.labels()) is None:
        raise ValueError("skew_damping needs data with labels")
    counts = torch.bincount(labels[labels >= 0]).double()
    shares = counts[counts > 0] / counts.sum()
    return float(torch.exp(-(shares * shares.log()).sum())) if len(shares) else 1.0
