"""Straggler, a baseline of Fed-HeLLo (Zhang et al., arXiv 2506.12213): everyone trains what the weakest client can.

    S_i = {⌊kL/c⌋ : k = 0 … c − 1} where c = min c_i over the fleet's clients that can train at all

Ranks likewise: in each layer everyone trains the smallest rank that those clients can. The set is the same in every
round, so the other layers and components are never trained: nothing at all where the clients have no layer in common.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hellora.core.state import StrategyState
from hellora.core.types import Allocation, ClientProfile
from hellora.methods.allocators.geometric import pattern_layers
from hellora.methods.context import RoundContext
from hellora.methods.strategies import Allocator


@dataclass(frozen=True)
class Straggler(Allocator):
    """Lets everyone train one evenly spread set of layers, at one rank."""

    def allocate(self, context: RoundContext) -> tuple[Allocation, StrategyState]:
        num_layers, max_rank = context.spec.num_layers, context.spec.max_rank

        def evenly(count: int) -> npt.NDArray[np.int64]:
            return pattern_layers("uniform", count, num_layers)

        def able_to_train(client: ClientProfile) -> bool:
            return client.budget.trains(num_layers, max_rank) and context.capacity(client, evenly) > 0

        able = [client for client in context.fleet if able_to_train(client)]
        every = [c.budget.ranks(num_layers, max_rank) for c in able]
        least = np.min([np.full(num_layers, max_rank), *every], axis=0)
        weakest = evenly(min((context.capacity(client, evenly) for client in able), default=0))
        ranks = np.zeros(num_layers, dtype=np.int64)
        ranks[weakest] = least[weakest]
        nothing = np.zeros_like(ranks)
        return context.allocation_of_ranks(
            [ranks if able_to_train(client) else nothing for client in context.cohort]
        ), {}
