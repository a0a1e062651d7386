"""Nobody trains anything: what a head in closed form is worth on the network as it is (`method.start`)."""

from dataclasses import dataclass

from hellora.core.state import StrategyState
from hellora.core.types import Allocation
from hellora.methods.context import RoundContext
from hellora.methods.strategies import Allocator


@dataclass(frozen=True)
class Nothing(Allocator):
    """Lets no client train."""

    def allocate(self, context: RoundContext) -> tuple[Allocation, StrategyState]:
        return context.allocation([[] for _ in context.cohort]), {}
