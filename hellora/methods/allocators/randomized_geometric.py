"""RGD-HLA of Fed-HeLLo (Zhang et al., arXiv 2506.12213): draw layers by how many capacity groups' patterns hold them.

    p_j = #{g : j ∈ S(c_g)} / Σ_g c_g   over the fleet's distinct capacities c_1 < … < c_G;  uniform: p_j = 1 / L

S(c) is the pattern of `geometric`. Each client draws its c_i layers without replacement, anew every round. The groups
count, not the clients in them. A layer in no group's pattern has p_j = 0: if no client can train all layers, then
priority patterns never train some.
"""

from dataclasses import dataclass

import numpy as np

from hellora.core.state import StrategyState
from hellora.core.types import Allocation
from hellora.methods.allocators.geometric import Geometric, Pattern, pattern_layers
from hellora.methods.context import RoundContext, Scores
from hellora.methods.layer_sampling import sample_layers
from hellora.methods.strategies import Allocator


@dataclass(frozen=True)
class RandomizedGeometric(Allocator):
    """Draws layers anew in every round, by a fixed pattern of probabilities."""

    pattern: Pattern = "bottleneck"  # the shape over the model's depth by which layers are taken

    def __post_init__(self) -> None:
        Geometric(self.pattern)  # the same patterns are valid

    def probabilities(self, context: RoundContext) -> Scores:
        """Return p, (layers,)."""
        num_layers = context.spec.num_layers
        if self.pattern == "uniform":
            return np.full(num_layers, 1 / num_layers)
        # A fleet that cannot afford a layer of the pattern may afford other layers, or trains nothing.
        capacities = context.fleet_capacities(lambda c: pattern_layers(self.pattern, c, num_layers)) or (num_layers,)
        held = np.concatenate([pattern_layers(self.pattern, c, num_layers) for c in capacities])
        return np.bincount(held, minlength=num_layers) / sum(capacities)

    def allocate(self, context: RoundContext) -> tuple[Allocation, StrategyState]:
        p = self.probabilities(context)
        return context.largest_allocation(lambda client, c: sample_layers(p, c, context.rng(client.id, "layers"))), {}
