"""LEGEND (arXiv 2412.20004) and FedQuad (arXiv 2506.01001): the deepest layers, with larger ranks nearer the output.

    S_i = {L − c_i, …, L − 1};  r_ij = budget rank of layer j × (s + (1 − s) · (j − L + c_i) / (c_i − 1)),  j ∈ S_i

rounded, and at least 1 where the budget is. The ranks are an arithmetic sequence: the share s of the budget at the
shallowest trained layer, all of it at the output. s = 1 is `everything`. Memory and time follow the shallowest trained
layer, which is why the trained layers end at the output. Both papers also choose the depth of each device from measured
costs; here budgets say it.
"""

from dataclasses import dataclass, replace

import numpy as np

from hellora.allocators.everything import Everything
from hellora.protocols import Allocator, RoundView
from hellora.types import Allocation, Memory


@dataclass(frozen=True)
class DepthFromOutput(Allocator):
    """The deepest layers that the client can afford, with ranks that grow towards the output."""

    smallest: float = 0.5  # s: share of the budget's rank at the shallowest trained layer

    def __post_init__(self) -> None:
        if not 0 < self.smallest <= 1:
            raise ValueError(f"smallest must be greater than 0 and at most 1, not {self.smallest}")

    def allocate(self, view: RoundView) -> tuple[Allocation, Memory]:
        whole, memory = Everything().allocate(view)
        num_layers, max_rank = view.spec.num_layers, view.spec.max_rank
        from_output = num_layers - 1 - np.arange(num_layers)
        mask = whole.mask.copy()
        for row, client, c in zip(mask, view.cohort, view.capacities, strict=True):
            shares = np.clip(1 - (1 - self.smallest) * from_output / max(c - 1, 1), 0, 1)
            ranks = np.floor(client.budget.ranks(num_layers, max_rank) * shares + 0.5)
            row &= np.arange(max_rank) < np.maximum(ranks, 1)[:, None]
        return replace(whole, mask=mask), memory
