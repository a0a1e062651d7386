"""Fed-PLoRA (ICLR 2026, arXiv 2602.16936): each client trains random rank components, drawn anew every round.

    K_i ~ uniform over the sets of r_i of the R components; client i trains {(A_q, B_q) : q ∈ K_i} in every layer

The set is the same in every layer that a client trains; where its budget has one rank per layer, smaller sets are parts
of the larger. With the dispatcher `whole` the client merges the other components into its frozen base, as published. A
client that cannot afford all layers trains its deepest.
"""

from dataclasses import dataclass, replace

import numpy as np

from hellora.core.state import StrategyState
from hellora.core.types import Allocation
from hellora.methods.allocators.everything import Everything
from hellora.methods.context import RoundContext
from hellora.methods.strategies import Allocator


@dataclass(frozen=True)
class RandomRanks(Allocator):
    """Trains as many rank components as the client can afford, all equally likely."""

    def allocate(self, context: RoundContext) -> tuple[Allocation, StrategyState]:
        first, state = Everything().allocate(context)
        clients = zip(first.mask, context.cohort, strict=True)
        # The first r of a random order are a random set of r.
        rows = [row[:, context.rng(client.id, "ranks").permutation(context.spec.max_rank)] for row, client in clients]
        return replace(first, mask=np.array(rows, dtype=bool).reshape(first.mask.shape)), state
