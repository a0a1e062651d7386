"""HetLoRA (Cho et al., EMNLP 2024, arXiv 2401.06432): a client trains the rank it has pruned itself to.

    r_i ← min(budget of client i, the rank it reported last);  it trains the first r_i components of every layer

Clients report a rank where `train.tail_penalty` is set: one whose last components have shrunk gives them up. Without it
nobody reports, and every client keeps the rank of its budget. A client that cannot afford all layers trains its
deepest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from hellora.core.types import Allocation, Memory
from hellora.methods.allocators.everything import Everything
from hellora.methods.protocols import Allocator, RoundView


@dataclass(frozen=True)
class SelfPruning(Allocator):
    """The first components of every layer, up to the rank that the client has pruned itself to."""

    prunes: ClassVar[bool] = True

    def pruned_ranks(self, memory: Memory, reported: Mapping[int, int]) -> Mapping[int, int]:
        known = dict(memory["ranks"].tolist()) if "ranks" in memory else {}
        return {**known, **reported}

    def allocate(self, view: RoundView) -> tuple[Allocation, Memory]:
        ranks = self.pruned_ranks(view.memory, view.reported_ranks)
        whole, _ = Everything().allocate(view)
        limits = np.array([ranks.get(client, view.spec.max_rank) for client in whole.clients], dtype=np.int64)
        mask = whole.mask & (np.arange(view.spec.max_rank) < limits[:, None, None])
        # (clients, 2): each client that ever reported, and its rank.
        memory = {"ranks": torch.tensor(sorted(ranks.items()), dtype=torch.int64)} if ranks else {}
        return replace(whole, mask=mask), memory
