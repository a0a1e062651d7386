"""Fed-HeLLo (Zhang et al., TNNLS 2025, arXiv 2506.12213), the published schedule: RGD-HLA comes first, then FIM-HLA.

    t < T_RGD: layers drawn as by `randomized_geometric`
    t ≥ T_RGD: layers drawn as by `fisher`, with Γ measured at t = T_RGD, T_RGD + T_FIM, T_RGD + 2 T_FIM, …

The paper has T_RGD = T_FIM = 50 of 500 rounds. The Fisher probabilities are in force in every round from T_RGD on. What
clients report while RGD runs counts from the first refresh on.
"""

from dataclasses import dataclass

from hellora.core.state import StrategyState
from hellora.core.types import Allocation
from hellora.methods.allocators.fisher import Fisher, Resample, Source, span
from hellora.methods.allocators.geometric import Pattern
from hellora.methods.allocators.randomized_geometric import RandomizedGeometric
from hellora.methods.context import RoundContext
from hellora.methods.demands import Demands
from hellora.methods.strategies import Allocator


@dataclass(frozen=True)
class FedHello(Allocator):
    """Draws layers by their depth at first, by their Fisher information later."""

    warmup: int | None = None  # rounds of randomized_geometric, T_RGD; None = a tenth of the run
    refresh: int | None = None  # rounds between refreshes, T_FIM; None = a tenth of the run
    pattern: Pattern = "bottleneck"  # the shape over the model's depth by which layers are taken
    scores: Source = "proxy"  # who scores the layers: the server on proxy data, or the clients
    resample: Resample = "every_round"  # when a client draws its layers anew

    def __post_init__(self) -> None:
        if self.warmup is not None and self.warmup < 0:
            raise ValueError(f"warmup must not be negative, but it is {self.warmup}")
        _ = self.fisher  # checks the rest

    @property
    def fisher(self) -> Fisher:
        """Return the allocator after the warm-up."""
        return Fisher(scores=self.scores, refresh=self.refresh, resample=self.resample, fallback=self.pattern)

    @property
    def demands(self) -> Demands:
        return self.fisher.demands

    def allocate(self, context: RoundContext) -> tuple[Allocation, StrategyState]:
        if context.round >= span(self.warmup, context.rounds):
            return self.fisher.allocate(context)
        allocation, _ = RandomizedGeometric(self.pattern).allocate(context)
        return allocation, self.fisher.observe(context)
