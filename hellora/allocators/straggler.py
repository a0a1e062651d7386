"""Straggler, a baseline of Fed-HeLLo (Zhang et al., arXiv 2506.12213): everyone trains what the weakest client can.

    S_i = {⌊kL/c⌋ : k = 0 … c − 1} where c = min c_i over the fleet's clients that can train at all

Ranks likewise: in each layer everyone trains the smallest rank that those clients can. The set is the same in every
round, so the other layers and components are never trained: nothing at all where the clients have no layer in common.
"""

from dataclasses import dataclass, replace

import numpy as np

from hellora.allocators.geometric import pattern_layers
from hellora.protocols import Allocator, RoundView
from hellora.types import Allocation, Memory


@dataclass(frozen=True)
class Straggler(Allocator):
    """One evenly spread set of layers for all, at one rank."""

    def allocate(self, view: RoundView) -> tuple[Allocation, Memory]:
        num_layers, max_rank = view.spec.num_layers, view.spec.max_rank
        able = [p.budget for p in view.fleet if p.budget.trains(num_layers, max_rank)]
        weakest = pattern_layers("uniform", min((b.capacity(num_layers) for b in able), default=0), num_layers)
        ranks = np.min([b.ranks(num_layers, max_rank) for b in able], axis=0, initial=max_rank)
        allocation = view.allocation([weakest if c else [] for c in view.capacities])
        return replace(allocation, mask=allocation.mask & (np.arange(max_rank) < ranks[:, None])), {}
