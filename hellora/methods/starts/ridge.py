"""Ridge regression from sums (Fed3R, Fanì et al., ICML 2024; AFL, He et al., CVPR 2025, arXiv 2405.16240).

    W = (Σ_k G_k + λ I)⁻¹ Σ_k H_k      λ = λ_rel · tr(G) / columns

G_k = Σ x xᵀ and H_k = Σ x yᵀ are client k's sums (`closed_form`). The head is that of the pooled data: how they are
dealt out to clients makes no difference to it, not to one bit.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hellora.core.exchange import Declared, Named
from hellora.core.sums import Grid
from hellora.methods.closed_form import (
    HeadRows,
    HeadShape,
    Sums,
    check_penalty,
    gram_in_numbers,
    gram_of,
    gram_spec,
    ridge_inverse,
    ridge_solution,
)
from hellora.methods.demands import TARGETS, Demands
from hellora.methods.strategies import Start


@dataclass(frozen=True)
class Ridge(Start):
    """Regresses the classes, one-hot, or the numbers on the features of all clients, with an L2 penalty."""

    penalty: float = 1e-3  # λ_rel: the penalty λ in mean squares of a column

    passes: ClassVar[tuple[str, ...]] = ("sums",)
    leaves_out: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_penalty(self.penalty)

    @property
    def demands(self) -> Demands:
        return Demands(needs=frozenset({TARGETS}))

    def declares(self, step: str, shape: HeadShape, examples: int, grid: Grid) -> Declared:
        return Declared(report=gram_spec(shape, examples, grid))

    def sums(self, step: str, rows: HeadRows, brief: Named) -> Named:
        return gram_of(rows)

    def solve(self, shape: HeadShape, grid: Grid, found: Sums) -> Tensor:
        return ridge_solution(*gram_in_numbers(found["sums"], shape, grid), self.penalty)

    def inverse(self, shape: HeadShape, grid: Grid, found: Sums) -> Tensor:
        gram, _ = gram_in_numbers(found["sums"], shape, grid)
        return ridge_inverse(gram, self.penalty)
