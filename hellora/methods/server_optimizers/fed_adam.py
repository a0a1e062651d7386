"""FedAdam (Reddi et al., ICLR 2021, arXiv 2003.00295, Algorithm 2) steps on the delta Δ = aggregated − adapter.

    m ← β₁ m + (1 − β₁) Δ        v ← β₂ v + (1 − β₂) Δ²        adapter ← adapter + lr · m / (√v + τ)

m begins at 0 and v at τ², as in the paper; the step itself is in methods/moments.
"""

from dataclasses import dataclass

from torch import Tensor

from hellora.core.state import StrategyState
from hellora.core.types import Adapter, Mask
from hellora.methods.context import RoundContext
from hellora.methods.demands import LASTING_COMPONENTS, LONE_ADAPTER, Demands
from hellora.methods.moments import adaptive_step, check_adaptive
from hellora.methods.strategies import ServerOptimizer


@dataclass(frozen=True)
class FedAdam(ServerOptimizer):
    """The second moment forgets, so that steps stay of one size."""

    lr: float = 1e-2  # of the server's step
    beta1: float = 0.9  # the share of the last mean of deltas that stays
    beta2: float = 0.99  # the share of the last mean of their squares that stays
    tau: float = 1e-3  # how much the server adapts: the smaller the more

    def __post_init__(self) -> None:
        check_adaptive(self.lr, self.tau, beta1=self.beta1, beta2=self.beta2)

    @property
    def demands(self) -> Demands:
        return Demands(needs=frozenset({LASTING_COMPONENTS, LONE_ADAPTER}))

    def step(
        self, context: RoundContext, aggregated: Adapter, trained: Mask, factors: frozenset[str]
    ) -> tuple[Adapter, StrategyState]:
        def second(v: Tensor, square: Tensor) -> Tensor:
            return self.beta2 * v + (1 - self.beta2) * square

        return adaptive_step(
            context, aggregated, trained, factors, lr=self.lr, beta1=self.beta1, tau=self.tau, second=second
        )
