"""Exclusive, a baseline of Fed-HeLLo (Zhang et al., arXiv 2506.12213): only clients that can train all layers train.

    S_i = {0, …, L − 1} if c_i = L, else ∅

A weak client in the cohort gets an empty row.
"""

from dataclasses import dataclass

from hellora.errors import InputError
from hellora.protocols import Allocator, RoundView
from hellora.types import Allocation, Memory


@dataclass(frozen=True)
class Exclusive(Allocator):
    """All or nothing; a cohort without a strong client leaves the round unchanged."""

    def allocate(self, view: RoundView) -> tuple[Allocation, Memory]:
        num_layers = view.spec.num_layers
        if num_layers not in view.fleet_capacities:
            raise InputError(
                f"allocator 'exclusive' needs a client that can train all {num_layers} layers, and the fleet has none"
            )
        return view.allocation([range(num_layers if c == num_layers else 0) for c in view.capacities]), {}
