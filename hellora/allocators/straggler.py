"""Straggler, a baseline of Fed-HeLLo (Zhang et al., arXiv 2506.12213): everyone trains what the weakest client can.

    S_i = {⌊kL/c⌋ : k = 0 … c − 1} where c = min c_i over the fleet's clients that can train at all

The set is the same in every round, so the other layers are never trained.
"""

from dataclasses import dataclass

from hellora.allocators.geometric import pattern_layers
from hellora.protocols import Allocator, RoundView
from hellora.types import Allocation, Memory


@dataclass(frozen=True)
class Straggler(Allocator):
    """One evenly spread set of layers for all."""

    def allocate(self, view: RoundView) -> tuple[Allocation, Memory]:
        weakest = pattern_layers("uniform", min(view.fleet_capacities, default=0), view.spec.num_layers)
        return view.allocation([weakest if c else [] for c in view.capacities]), {}
