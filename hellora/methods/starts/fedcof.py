"""FedCOF (Goswami et al., NeurIPS 2025, arXiv 2412.14326): covariances of features from the clients' class means alone.

    Σ̂_c = 1/(K_c − 1) Σ_k n_kc (μ_kc − μ_c)(μ_kc − μ_c)ᵀ + γ I
    Ĝ = Σ_c (n_c − 1) Σ̂_c + Σ_c n_c μ_c μ_cᵀ      W = (Ĝ + λ I)⁻¹ (n_1 μ_1 … n_C μ_C)

The second sum of Ĝ, which the paper leaves out, makes it that of `ridge`. K_c is how many means there are of class c.
Σ̂_c is unbiased where γ = 0, K_c ≥ 2, and examples of a class are dealt out at random. Where one client holds a whole
class it would be 0/0; so every client deals its examples of a class out into two halves at random, and sends the mean
of each. A class that still has one mean only (of one example) takes the covariance of all classes together.

Little travels (2 C d numbers), but in the clear: every client's own class means and counts. They are no sums, and
their order of addition is that of clients' ids.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hellora.core.errors import RunError
from hellora.core.exchange import Declared, Named, TensorSpec
from hellora.core.sums import Grid
from hellora.methods.closed_form import HeadRows, HeadShape, Sums, check_penalty, ridge_solution
from hellora.methods.strategies import Start

HALVES = 2


@dataclass(frozen=True)
class FedCof(Start):
    """Estimates what ridge regression needs from the spread of the clients' class means."""

    penalty: float = 1e-3  # λ_rel: the penalty λ in mean squares of a column
    shrinkage: float = 0.0  # γ, in mean variances of a column

    passes: ClassVar[tuple[str, ...]] = ("means",)
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_penalty(self.penalty)
        if not self.shrinkage >= 0:
            raise ValueError(f"shrinkage must not be negative, but it is {self.shrinkage}")

    def declares(self, step: str, shape: HeadShape, examples: int, grid: Grid) -> Declared:
        means = TensorSpec((HALVES, shape.classes, shape.columns))
        return Declared(report={"means": means, "counts": TensorSpec(means.shape[:2], torch.int64, 0, examples)})

    def sums(self, step: str, rows: HeadRows, brief: Named) -> Named:
        shape = rows.shape
        order = torch.randperm(len(rows.labels), generator=torch.Generator().manual_seed(rows.seed))
        order = order[rows.labels[order].argsort(stable=True)]  # by class, at random inside
        group = torch.empty_like(rows.labels)
        group[order] = torch.arange(len(order)) % HALVES * shape.classes + rows.labels[order]
        counts = torch.bincount(group, minlength=HALVES * shape.classes)
        sums = torch.zeros(len(counts), shape.columns, dtype=torch.float64).index_add_(0, group, rows.x)
        means = (sums / counts.clamp(min=1)[:, None]).float()
        return {"means": means.view(HALVES, shape.classes, -1), "counts": counts.view(HALVES, -1)}

    def gather(self, step: str, reports: Mapping[int, Named]) -> Named:
        """Return all means (groups, classes, columns) and counts (groups, classes), by client id."""
        return {name: torch.cat([reports[k][name] for k in sorted(reports)]) for name in ("means", "counts")}

    def solve(self, shape: HeadShape, grid: Grid, found: Sums) -> Tensor:
        means, counts = found["means"]["means"].double(), found["means"]["counts"].double()
        of_class, groups = counts.sum(0), (counts > 0).sum(0)  # n_c, K_c: (classes,)
        moments = torch.einsum("kc,kcd->dc", counts, means)
        mean = moments / of_class.clamp(min=1)
        spread = [  # Σ_k n_kc (μ_kc − μ_c)(μ_kc − μ_c)ᵀ of each class
            (counts[:, c, None] * (means[:, c] - mean[:, c])).T @ (means[:, c] - mean[:, c])
            for c in range(shape.classes)
        ]
        freedom = int((groups - 1).clamp(min=0).sum())
        if not freedom:
            raise RunError("fedcof needs a class with two examples at least: nothing is known of covariances")
        pooled = torch.stack(spread).sum(0) / freedom
        ridge = self.shrinkage * float(pooled.diagonal().mean()) * torch.eye(len(pooled), dtype=pooled.dtype)
        gram = moments @ mean.T
        for c in range(shape.classes):
            covariance = spread[c] / (groups[c] - 1) if groups[c] > 1 else pooled
            gram = gram + max(float(of_class[c]) - 1, 0.0) * (covariance + ridge)
        return ridge_solution(gram, moments, self.penalty)
