"""HetLoRA (Cho et al., EMNLP 2024, arXiv 2401.06432): the tail of a client's rank is regularised, and pruned if it
shrinks.

    loss + λ Σ_modules ‖B[:, q:]‖_F ‖A[q:]‖_F   with  q = max(min_rank, ⌊γ rank⌋)

A client where that sum is smaller after training than before reports q as its rank. The allocator `self_pruning` then
gives it no more.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hellora.core.exchange import Declared, Named, TensorSpec
from hellora.methods.demands import RANKS_REPORTED, Demands
from hellora.methods.local import Local, Shapes
from hellora.methods.strategies import LocalTraining


@dataclass(frozen=True)
class Hetlora(LocalTraining):
    """Penalises the last components, and reports the rank that a client wants to train from now on."""

    tail_penalty: float = 1e-3  # λ; 0 = no penalty, no report
    tail_share: float = 0.99  # γ
    min_rank: int = 1  # below which no client prunes itself; the published runs have 5

    def __post_init__(self) -> None:
        if not self.tail_penalty >= 0:
            raise ValueError(f"tail_penalty must not be negative, but it is {self.tail_penalty}")
        if not 0 <= self.tail_share < 1:
            raise ValueError(f"tail_share must be in [0, 1), not {self.tail_share}")
        if self.min_rank < 1:
            raise ValueError(f"min_rank must be greater than 0, not {self.min_rank}")

    @property
    def demands(self) -> Demands:
        return Demands(promises=frozenset({RANKS_REPORTED} if self.tail_penalty else ()))

    def declares(self, shapes: Shapes) -> Declared:
        given = int(shapes.trained.sum(axis=1).max())
        return Declared(report={"rank": TensorSpec((), torch.int64, low=1, high=given, optional=True)})

    def begin(self, local: Local) -> Any:
        return self.tail(local).detach() if self.tail_penalty else None

    def penalty(self, local: Local) -> Tensor | None:
        return self.tail_penalty * self.tail(local) if self.tail_penalty else None

    def end(self, local: Local, carry: Any) -> tuple[Named, Named]:
        if carry is None or not self.tail(local) < carry:
            return {}, {}
        return {"rank": torch.tensor(self.kept_rank(int(local.trained.sum(axis=1).max())))}, {}

    def kept_rank(self, rank: int) -> int:
        """Return what is left of a rank without its tail, at most `rank`."""
        return min(rank, max(self.min_rank, math.floor(self.tail_share * rank)))

    def tail(self, local: Local) -> Tensor:
        """Return Σ over modules of ‖B[:, q:]‖_F ‖A[q:]‖_F, with q = `kept_rank` of the components trained."""
        norm = torch.linalg.matrix_norm
        kept = [(pair, self.kept_rank(len(pair.A))) for pair in local.pairs.values()]
        return torch.stack([norm(pair.B[:, q:]) * norm(pair.A[q:]) for pair, q in kept]).sum()
