"""FedProx (Li et al., MLSys 2020, arXiv 1812.06127): a client stays near what it received.

    factors:   loss + (μ/2) Σ ‖θ − θ^t‖²                        over all that it trains
    product:   loss + (μ/2) Σ_modules ‖s (B A − B^t A^t)‖²_F    and the head as above

The product form is ours: it does not see a change of A and B that leaves B A as it is. The difference is the product
U V with U = [B − B^t, B^t] and V = [A; A − A^t], so that its norm comes from two matrices of 2r × 2r numbers. (From the
three Gram matrices of B A, B^t A^t and both, it would cancel in float32.)
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from hellora.core.exchange import Declared
from hellora.methods.local import Local, LocalPair, Shapes
from hellora.methods.strategies import LocalTraining

Form = Literal["factors", "product"]


@dataclass(frozen=True)
class FedProx(LocalTraining):
    """Penalises the squared distance from the received adapter, in its factors or in what they do."""

    mu: float = 0.01  # μ; 0 is plain training
    form: Form = "factors"  # what stays near: the factors, or their product and the head

    def __post_init__(self) -> None:
        if not self.mu >= 0:
            raise ValueError(f"mu must not be negative, but it is {self.mu}")
        if self.form not in get_args(Form):
            raise ValueError(f"form must be one of {', '.join(get_args(Form))}, not {self.form!r}")

    def declares(self, shapes: Shapes) -> Declared:
        """Declare that nothing travels; it holds what was received, and for a moment the gradient of the penalty."""
        trained = sum(spec.num_bytes for spec in shapes.trained_tensors().values())
        return Declared(scratch_bytes=2 * trained if self.mu else 0)

    def penalty(self, local: Local) -> Tensor | None:
        if self.mu == 0:
            return None
        moved = {name: parameter - local.received[name] for name, parameter in local.parameters.items()}
        if self.form == "product":
            moved = {name: delta for name, delta in moved.items() if name.startswith("head.")}
        squares = [delta.square().sum() for delta in moved.values()]
        if self.form == "product":
            squares += [squared_distance(pair) for pair in local.pairs.values()]
        return self.mu / 2 * torch.stack(squares).sum()


def squared_distance(pair: LocalPair) -> Tensor:
    """Return ‖s (B A − B^t A^t)‖²_F = s² Σ (Uᵀ U) ∗ (V Vᵀ)."""
    A, B = pair.received.A, pair.received.B
    U, V = torch.cat([pair.B - B, B], dim=1), torch.cat([pair.A, pair.A - A])
    return pair.scale**2 * ((U.T @ U) * (V @ V.T)).sum()
