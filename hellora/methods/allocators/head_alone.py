"""Linear probing: clients train the head on the frozen network, as in OvA-LP (arXiv 2511.05028)."""

from dataclasses import dataclass

from hellora.core.state import StrategyState
from hellora.core.types import Allocation
from hellora.methods.context import RoundContext
from hellora.methods.demands import HEAD, HEAD_ALONE, HEAD_TRAINED, Demands
from hellora.methods.strategies import Allocator


@dataclass(frozen=True)
class HeadAlone(Allocator):
    """Lets every client train the head, and no layer."""

    @property
    def demands(self) -> Demands:
        return Demands(needs=frozenset({HEAD, HEAD_TRAINED}), promises=frozenset({HEAD_ALONE}))

    def allocate(self, context: RoundContext) -> tuple[Allocation, StrategyState]:
        return context.allocation([[] for _ in context.cohort]), {}
