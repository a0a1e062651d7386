"""Fed-PLoRA (ICLR 2026, arXiv 2602.16936): each client trains random rank components, drawn anew every round.

    K_i ~ uniform over the sets of r_i of the R components; client i trains {(A_q, B_q) : q ∈ K_i} in every layer

The set is the same in every layer that a client trains; where its budget has one rank per layer, smaller sets are parts
of the larger. With the dispatcher `whole` the client merges the other components into its frozen base, as published. A
client that cannot afford all layers trains its deepest.
"""

from dataclasses import dataclass, replace

import numpy as np

from hellora.core.types import Allocation, Memory
from hellora.methods.allocators.everything import Everything
from hellora.methods.protocols import Allocator, RoundView


@dataclass(frozen=True)
class RandomRanks(Allocator):
    """As many rank components as the client can afford, all equally likely."""

    def allocate(self, view: RoundView) -> tuple[Allocation, Memory]:
        first, memory = Everything().allocate(view)
        clients = zip(first.mask, view.cohort, strict=True)
        # The first r of a random order are a random set of r.
        rows = [row[:, view.rng(client.id, "ranks").permutation(view.spec.max_rank)] for row, client in clients]
        return replace(first, mask=np.array(rows, dtype=bool).reshape(first.mask.shape)), memory
