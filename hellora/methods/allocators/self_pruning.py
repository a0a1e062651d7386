"""HetLoRA (Cho et al., EMNLP 2024, arXiv 2401.06432): a client trains the rank it has pruned itself to.

    r_i ← min(budget of client i, the rank it reported last);  it trains the first r_i components of every layer

Clients report a rank under the rule `hetlora` of local training: one whose last components have shrunk gives them up.
Without it nobody reports, and every client keeps the rank of its budget. A client that cannot afford all layers trains
its deepest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from hellora.core.state import StrategyState
from hellora.core.types import Allocation
from hellora.methods.allocators.everything import Everything
from hellora.methods.context import RoundContext
from hellora.methods.demands import RANKS_PRUNED, Demands
from hellora.methods.strategies import Allocator


@dataclass(frozen=True)
class SelfPruning(Allocator):
    """Trains the first components of every layer, up to the rank that the client has pruned itself to."""

    @property
    def demands(self) -> Demands:
        return Demands(promises=frozenset({RANKS_PRUNED}))

    def limits(self, context: RoundContext) -> Mapping[int, int]:
        known = dict(context.state["ranks"].tolist()) if "ranks" in context.state else {}
        return {**known, **{client: int(rank) for client, rank in context.reported("hetlora/rank").items()}}

    def allocate(self, context: RoundContext) -> tuple[Allocation, StrategyState]:
        ranks = self.limits(context)
        whole, _ = Everything().allocate(context)
        limits = np.array([ranks.get(client, context.spec.max_rank) for client in whole.clients], dtype=np.int64)
        mask = whole.mask & (np.arange(context.spec.max_rank) < limits[:, None, None])
        # (clients, 2): each client that ever reported, and its rank.
        state = {"ranks": torch.tensor(sorted(ranks.items()), dtype=torch.int64)} if ranks else {}
        return replace(whole, mask=mask), state
