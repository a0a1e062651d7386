"""FedRA (Su et al., ECCV 2024, arXiv 2311.11227): each client trains random layers, drawn anew every round.

    S_i ~ uniform over the sets of c_i of the L layers

This is FedRA's allocation. The original also leaves the other blocks out of the client's model: dispatcher `bypass`.
"""

from dataclasses import dataclass

import numpy as np

from hellora.core.state import StrategyState
from hellora.core.types import Allocation
from hellora.methods.context import RoundContext
from hellora.methods.layer_sampling import sample_layers
from hellora.methods.strategies import Allocator


@dataclass(frozen=True)
class RandomLayers(Allocator):
    """Trains as many layers as the client can afford, all equally likely."""

    def allocate(self, context: RoundContext) -> tuple[Allocation, StrategyState]:
        p = np.full(context.spec.num_layers, 1 / context.spec.num_layers)
        return context.largest_allocation(lambda client, c: sample_layers(p, c, context.rng(client.id, "layers"))), {}
