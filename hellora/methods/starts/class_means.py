"""Class means as a head (FedNCM, Legate et al., NeurIPS 2023).

    μ_c = Σ_k Σ_{examples of c} φ / n_c      w_c = μ_c / ‖μ_c‖

The bias is 0. A class that nobody has gets a row of zeros.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hellora.core.exchange import Declared, Named
from hellora.core.sums import Grid
from hellora.methods.closed_form import HeadRows, HeadShape, Sums, moments_of, moments_spec
from hellora.methods.strategies import Start


@dataclass(frozen=True)
class ClassMeans(Start):
    """Scores a class by how far an example lies in the direction of the class's mean."""

    passes: ClassVar[tuple[str, ...]] = ("sums",)

    def declares(self, step: str, shape: HeadShape, examples: int, grid: Grid) -> Declared:
        return Declared(report=moments_spec(shape, examples, grid))

    def sums(self, step: str, rows: HeadRows, brief: Named) -> Named:
        return moments_of(rows)

    def solve(self, shape: HeadShape, grid: Grid, found: Sums) -> Tensor:
        sums = grid.numbers(found["sums"]["moments"])[: shape.features].T  # n_c μ_c, which has the direction of μ_c
        weight = torch.zeros(shape.classes, shape.columns, dtype=torch.float64)
        weight[:, : shape.features] = torch.nn.functional.normalize(sums, dim=1)
        return weight
