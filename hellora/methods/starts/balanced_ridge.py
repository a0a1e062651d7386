"""Ridge regression in which every class weighs the same (Fed3R's sums, with rows weighed as in a balanced regression).

    first pass     n_c
    second pass    G_k = Σ v_i x xᵀ,   H_k = Σ v_i x yᵀ      v_i = n_min / n_c of the example's class c
    W = (a Σ_k G_k + λ I)⁻¹ a Σ_k H_k      a = n / (C n_min)      λ = λ_rel · tr(a G) / columns

C is the number of classes that somebody has, and n_min the examples of the rarest. It takes two passes, for these sums
cannot be had from those of plain ridge regression. What is put on the grid is √v x, which is never larger than x.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from hellora.core.exchange import Declared, Named, TensorSpec
from hellora.core.sums import Grid
from hellora.methods.closed_form import (
    HeadRows,
    HeadShape,
    Sums,
    check_penalty,
    counts_of,
    counts_spec,
    gram_in_numbers,
    gram_of,
    gram_spec,
    ridge_solution,
)
from hellora.methods.strategies import Start


@dataclass(frozen=True)
class BalancedRidge(Start):
    """Regresses the classes on the features of all clients, with the same weight for every class."""

    penalty: float = 1e-3  # λ_rel: the penalty λ in mean squares of a column

    passes: ClassVar[tuple[str, ...]] = ("counts", "sums")

    def __post_init__(self) -> None:
        check_penalty(self.penalty)

    def declares(self, step: str, shape: HeadShape, examples: int, grid: Grid) -> Declared:
        if step == "counts":
            return Declared(report=counts_spec(shape, examples))
        factors = TensorSpec((shape.classes,), torch.float64, 0, 1)
        return Declared(brief={"factors": factors}, report=gram_spec(shape, examples, grid))

    def brief(self, step: str, found: Sums) -> Named:
        return {} if step == "counts" else {"factors": factors_of(found["counts"]["counts"])}

    def sums(self, step: str, rows: HeadRows, brief: Named) -> Named:
        if step == "counts":
            return counts_of(rows)
        return gram_of(replace(rows, x=rows.x * brief["factors"][rows.labels, None]))

    def solve(self, shape: HeadShape, grid: Grid, found: Sums) -> Tensor:
        counts = found["counts"]["counts"]
        gram, moments = gram_in_numbers(found["sums"], shape, grid)
        present = counts[counts > 0]
        level = float(present.sum()) / (len(present) * float(present.min()))
        return ridge_solution(level * gram, level * moments * factors_of(counts), self.penalty)


def factors_of(counts: Tensor) -> Tensor:
    """Return √v (classes,) in float64, at most 1; 0 for a class that nobody has."""
    known = counts.double()
    rarest = known[known > 0].min()
    return torch.where(known > 0, (rarest / known.clamp(min=1)).sqrt(), 0.0)
