"""Exclusive, a baseline of Fed-HeLLo (Zhang et al., arXiv 2506.12213): only clients that can train all layers train.

    S_i = {0, …, L − 1} if c_i = L, else ∅

A weak client in the cohort gets an empty row.
"""

from dataclasses import dataclass

from hellora.errors import InputError
from hellora.protocols import Allocator, RoundView
from hellora.types import AdapterSpec, Allocation, Budget, Memory


@dataclass(frozen=True)
class Exclusive(Allocator):
    """All or nothing; a cohort without a strong client leaves the round unchanged."""

    def allocate(self, view: RoundView) -> tuple[Allocation, Memory]:
        num_layers = view.spec.num_layers
        if not any(affords_all(client.budget, view.spec) for client in view.fleet):
            raise InputError(
                f"allocator 'exclusive' needs a client that can train all {num_layers} layers at the full rank, "
                f"and the fleet has none"
            )
        rows = [range(num_layers if affords_all(client.budget, view.spec) else 0) for client in view.cohort]
        return view.allocation(rows), {}


def affords_all(budget: Budget, spec: AdapterSpec) -> bool:
    """True for a budget without a limit that would be felt."""
    ranks = budget.ranks(spec.num_layers, spec.max_rank)
    return budget.capacity(spec.num_layers) == spec.num_layers and bool((ranks == spec.max_rank).all())
