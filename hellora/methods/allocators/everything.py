"""FedIT (Zhang et al. 2023, arXiv 2305.05644): every client trains every layer.

    S_i = {L − c_i, …, L − 1}, which is every layer where c_i = L

A client that cannot afford all layers trains its deepest, because memory follows the shallowest trained layer.
"""

from dataclasses import dataclass

from hellora.core.state import StrategyState
from hellora.core.types import Allocation
from hellora.methods.context import RoundContext
from hellora.methods.strategies import Allocator


@dataclass(frozen=True)
class Everything(Allocator):
    """Trains as many layers as the client can afford, deepest first."""

    def allocate(self, context: RoundContext) -> tuple[Allocation, StrategyState]:
        num_layers = context.spec.num_layers
        return context.largest_allocation(lambda _, c: range(num_layers - c, num_layers)), {}
