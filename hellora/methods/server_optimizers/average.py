"""FedAvg (McMahan et al., arXiv 1602.05629) and FedAvgM (Hsu et al., arXiv 1909.06335): add what the aggregator
changed, with momentum. The mean over clients is the aggregator's.

    v ← momentum · v + (aggregated − adapter)        adapter ← adapter + lr · v
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hellora.core.state import StrategyState
from hellora.core.types import Adapter, Mask
from hellora.methods.context import RoundContext
from hellora.methods.demands import LASTING_COMPONENTS, LONE_ADAPTER, Demands
from hellora.methods.stepping import stepped
from hellora.methods.strategies import ServerOptimizer


@dataclass(frozen=True)
class Average(ServerOptimizer):
    """Adds the aggregated delta, with momentum; lr = 1 and momentum = 0 take the aggregated adapter as it is."""

    lr: float = 1.0  # of the server's step
    momentum: float = 0.0  # of the server's steps

    def __post_init__(self) -> None:
        if not self.lr > 0 or not 0 <= self.momentum < 1:
            raise ValueError("the server's lr must be greater than 0, and its momentum in [0, 1)")

    @property
    def demands(self) -> Demands:
        if self.lr == 1 and self.momentum == 0:
            return Demands()
        return Demands(needs=frozenset({LASTING_COMPONENTS, LONE_ADAPTER}))

    def step(
        self, context: RoundContext, aggregated: Adapter, trained: Mask, factors: frozenset[str]
    ) -> tuple[Adapter, StrategyState]:
        if self.lr == 1 and self.momentum == 0:
            return aggregated, {}
        velocity = dict(context.state)

        def move(name: str, delta: Tensor, moves: Tensor) -> Tensor:
            if self.momentum:
                v = velocity.get(name, torch.zeros_like(delta))
                delta = velocity[name] = torch.where(moves, self.momentum * v + delta, v)
            return self.lr * delta

        return stepped(context, aggregated, trained, factors, move), velocity
