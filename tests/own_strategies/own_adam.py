"""FedAdam (Reddi et al., arXiv 2003.00295) as a user would write it, on the helper that moves what was trained."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hellora.core import Adapter, Mask, StrategyState
from hellora.methods import Demands, RoundContext, ServerOptimizer, demands, stepped


@dataclass(frozen=True)
class OwnAdam(ServerOptimizer):
    """m ← β m + (1 − β) Δ;  v ← β v + (1 − β) Δ²;  θ ← θ + step · m / (√v + ε)."""

    step_size: float = 0.05
    beta: float = 0.9
    epsilon: float = 1e-3

    @property
    def demands(self) -> Demands:
        return Demands(needs=frozenset({demands.LASTING_COMPONENTS}))

    def step(
        self, context: RoundContext, aggregated: Adapter, trained: Mask, factors: frozenset[str]
    ) -> tuple[Adapter, StrategyState]:
        state = dict(context.state)

        def move(name: str, delta: Tensor, moves: Tensor) -> Tensor:
            m, v = (state.get(f"{which}/{name}", torch.zeros_like(delta)) for which in "mv")
            m = state[f"m/{name}"] = torch.where(moves, self.beta * m + (1 - self.beta) * delta, m)
            v = state[f"v/{name}"] = torch.where(moves, self.beta * v + (1 - self.beta) * delta.square(), v)
            return self.step_size * m / (v.sqrt() + self.epsilon)

        return stepped(context, aggregated, trained, factors, move), state
