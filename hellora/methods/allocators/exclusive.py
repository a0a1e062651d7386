"""Exclusive, a baseline of Fed-HeLLo (Zhang et al., arXiv 2506.12213): only clients that can train all layers train.

    S_i = {0, …, L − 1} if c_i = L, else ∅

A weak client in the cohort gets an empty row.
"""

from dataclasses import dataclass

import numpy as np

from hellora.core.errors import InputError
from hellora.core.state import StrategyState
from hellora.core.types import Allocation, ClientProfile
from hellora.methods.context import RoundContext
from hellora.methods.strategies import Allocator


@dataclass(frozen=True)
class Exclusive(Allocator):
    """Trains all layers or nothing; a cohort without a strong client leaves the round unchanged."""

    def allocate(self, context: RoundContext) -> tuple[Allocation, StrategyState]:
        spec = context.spec
        whole, nothing = (np.full(spec.num_layers, rank, dtype=np.int64) for rank in (spec.max_rank, 0))

        def affords_all(client: ClientProfile) -> bool:
            budget = client.budget
            within = budget.capacity(spec.num_layers) == spec.num_layers
            return (
                within
                and bool((budget.ranks(spec.num_layers, spec.max_rank) == whole).all())
                and context.fits(client, whole)
            )

        if not any(map(affords_all, context.fleet)):
            raise InputError(
                f"allocator 'exclusive' needs a client that can train all {spec.num_layers} layers at the full rank, "
                f"and the fleet has none"
            )
        return context.allocation_of_ranks([whole if affords_all(client) else nothing for client in context.cohort]), {}
