"""LEGEND (arXiv 2412.20004) and FedQuad (arXiv 2506.01001): train the deepest layers, with ranks larger near the
output.

    S_i = {L − c_i, …, L − 1};  r_ij = budget rank of layer j × (s + (1 − s) · (j − L + c_i) / (c_i − 1)),  j ∈ S_i

rounded, and at least 1 where the budget is; a single layer has the whole rank of its budget. The ranks are an
arithmetic sequence: the share s of the budget at the shallowest trained layer, all of it at the output. s = 1 is
`everything`. Memory and time follow the shallowest trained layer, which is why the trained layers end at the output.
Both papers also choose the depth of each device from measured costs; here budgets say it.
"""

from dataclasses import dataclass

import numpy as np

from hellora.budgets.planner import largest
from hellora.core.state import StrategyState
from hellora.core.types import Allocation, ClientProfile, Ranks
from hellora.methods.context import RoundContext
from hellora.methods.strategies import Allocator


@dataclass(frozen=True)
class DepthFromOutput(Allocator):
    """Trains the deepest layers that the client can afford, with ranks that grow towards the output."""

    smallest: float = 0.5  # s: share of the budget's rank at the shallowest trained layer

    def __post_init__(self) -> None:
        if not 0 < self.smallest <= 1:
            raise ValueError(f"smallest must be greater than 0 and at most 1, not {self.smallest}")

    def allocate(self, context: RoundContext) -> tuple[Allocation, StrategyState]:
        return context.allocation_of_ranks([self.most(context, client) for client in context.cohort]), {}

    def most(self, context: RoundContext, client: ClientProfile) -> Ranks:
        """Return the ranks of a client that trains as many layers as it can afford, (layers,)."""
        limit = client.budget.capacity(context.spec.num_layers)
        return self.ranks(
            context, client, largest(limit, lambda c: context.fits(client, self.ranks(context, client, c)))
        )

    def ranks(self, context: RoundContext, client: ClientProfile, count: int) -> Ranks:
        """Return the ranks of a client that trains the deepest `count` layers, (layers,)."""
        from_output = context.spec.num_layers - 1 - np.arange(context.spec.num_layers)
        shares = np.clip(1 - (1 - self.smallest) * from_output / max(count - 1, 1), 0, 1)
        budget = context.ranks(client, np.flatnonzero(from_output < count))
        ranks: Ranks = np.minimum(budget, np.maximum(np.floor(budget * shares + 0.5), 1)).astype(np.int64)
        return ranks
