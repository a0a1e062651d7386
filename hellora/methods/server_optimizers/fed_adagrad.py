"""FedAdagrad (Reddi et al., ICLR 2021, arXiv 2003.00295, Algorithm 2) steps on the delta Δ = aggregated − adapter.

    m ← β₁ m + (1 − β₁) Δ        v ← v + Δ²        adapter ← adapter + lr · m / (√v + τ)

m begins at 0 and v at τ², as in the paper, number by number, without bias correction.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hellora.core.state import StrategyState
from hellora.core.types import Adapter, Mask
from hellora.methods.context import RoundContext
from hellora.methods.demands import LASTING_COMPONENTS, LONE_ADAPTER, Demands
from hellora.methods.strategies import ServerOptimizer, stepped


@dataclass(frozen=True)
class FedAdagrad(ServerOptimizer):
    """The second moment only grows, so that steps become smaller."""

    lr: float = 1e-2
    beta1: float = 0.0
    tau: float = 1e-3  # how much the server adapts: the smaller the more

    def __post_init__(self) -> None:
        if not self.lr > 0 or not self.tau > 0:
            raise ValueError("the server's lr and tau must be greater than 0")
        if not 0 <= self.beta1 < 1:
            raise ValueError(f"beta1 must be in [0, 1), not {self.beta1}")

    @property
    def demands(self) -> Demands:
        return Demands(needs=frozenset({LASTING_COMPONENTS, LONE_ADAPTER}))

    def step(
        self, context: RoundContext, aggregated: Adapter, trained: Mask, factors: frozenset[str]
    ) -> tuple[Adapter, StrategyState]:
        moments = dict(context.state)

        def move(name: str, delta: Tensor, moves: Tensor) -> Tensor:
            m = moments.get(f"m/{name}", torch.zeros_like(delta))
            v = moments.get(f"v/{name}", torch.full_like(delta, self.tau**2))
            m = moments[f"m/{name}"] = torch.where(moves, self.beta1 * m + (1 - self.beta1) * delta, m)
            v = moments[f"v/{name}"] = torch.where(moves, v + delta.square(), v)
            return self.lr * m / (v.sqrt() + self.tau)

        return stepped(context, aggregated, trained, factors, move), moments
