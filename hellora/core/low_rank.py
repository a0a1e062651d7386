"""Sum low-rank products exactly, in float64, and never as a dense matrix.

A term is a weight and a pair: w · s · B A. A sum of terms is one pair with stacked factors. With B = Q_B R_B and
Aᵀ = Q_A R_A, its singular values are those of the small R_B R_Aᵀ, of at most (stacked rank) × (stacked rank) numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hellora.core.types import LoraPair

Term = tuple[float, LoraPair]  # w and the pair of w · s · B A


@dataclass(frozen=True, slots=True, eq=False)
class ThinSVD:
    """A thin SVD holds a matrix as U diag(S) Vh in float64, without the directions in which it is 0.

    The largest entry of each column of U is positive, so that the same matrix has the same factors.
    """

    U: Tensor  # (d_out, rank), orthonormal columns
    S: Tensor  # (rank,), descending, all > 0
    Vh: Tensor  # (rank, d_in), orthonormal rows

    @property
    def rank(self) -> int:
        return len(self.S)

    def truncated(self, rank: int, energy: float = 1.0) -> "ThinSVD":
        """Keep the first `rank` directions, or the fewest that hold the share `energy` of Σ S² if those are fewer."""
        keep = min(rank, self.rank)
        if energy < 1 and keep:
            held = self.S.square().cumsum(0)
            keep = min(keep, 1 + int((held < energy * held[-1]).sum()))
        return ThinSVD(self.U[:, :keep], self.S[:keep], self.Vh[:keep])

    def balanced(self, scale: float) -> LoraPair:
        """Return the pair of this scale, in float64, with √S on both sides, so that B is as long as A."""
        root = (self.S / scale).sqrt()
        return LoraPair(root[:, None] * self.Vh, self.U * root, scale)


def stacked(terms: Sequence[Term]) -> LoraPair:
    """Return Σ w · s · B A as one pair of scale 1 in float64; its rank is the sum of theirs."""
    A = torch.cat([pair.A.double() for _, pair in terms])
    B = torch.cat([weight * pair.scale * pair.B.double() for weight, pair in terms], dim=1)
    return LoraPair(A, B, 1.0)


def thin_svd(terms: Sequence[Term], rank: int | None = None) -> ThinSVD:
    """Return the SVD of Σ w · s · B A, or its first `rank` directions.

    What rounding alone can have left of terms that cancel counts as 0.
    """
    total = stacked(terms)
    B, A = Qr(total.B), Qr(total.A.T)
    U, S, Vh = torch.linalg.svd(B.R @ A.R.T, full_matrices=False)
    keep = int((rounding(total) < S).sum())
    keep = keep if rank is None else min(keep, rank)
    U, V = B.lift(U[:, :keep]), A.lift(Vh[:keep].T)
    sign = torch.where(U.gather(0, U.abs().argmax(dim=0, keepdim=True)) < 0, -1.0, 1.0)
    return ThinSVD(U * sign, S[:keep], (V * sign).T)


def singular_values(terms: Sequence[Term]) -> Tensor:
    """Return the singular values of Σ w · s · B A alone, in float64, descending, all > 0; see `thin_svd`."""
    total = stacked(terms)
    S: Tensor = torch.linalg.svdvals(Qr(total.B).R @ Qr(total.A.T).R.T)
    return S[rounding(total) < S]


def rounding(total: LoraPair) -> float:
    """Return the size below which a singular value of the stacked pair may be nothing but rounding errors."""
    sizes = total.B.norm(dim=0) * total.A.norm(dim=1)  # of the rank-1 terms; unlike the factors' own, free of gauge
    return torch.finfo(torch.float64).eps * total.rank * float(sizes.sum())


class Qr:
    """Factorises X = Q R. Q is not written out: that takes as long as the factorisation, and few columns are needed."""

    def __init__(self, X: Tensor) -> None:
        self.reflectors, self.tau = torch.geqrf(X)

    @property
    def R(self) -> Tensor:
        """Return R, of shape (min(X.shape), columns of X)."""
        return self.reflectors[: len(self.tau)].triu()

    def lift(self, small: Tensor) -> Tensor:
        """Return Q @ small, for `small` with as many rows as R."""
        padded = torch.nn.functional.pad(small, (0, 0, 0, len(self.reflectors) - len(small)))
        return torch.ormqr(self.reflectors[:, : len(self.tau)], self.tau, padded)


def to_global(svd: ThinSVD, scale: float, idle_A: Tensor) -> LoraPair:
    """Return the balanced pair of the first components, as many as `idle_A` (rank, d_in) has rows, and in its dtype.

    A component that the matrix does not fill has B = 0 and its row of `idle_A`: it adds nothing, and can be trained.
    With A = 0 too it would have no gradient, ever.
    """
    pair = svd.truncated(len(idle_A)).balanced(scale)
    A = torch.cat([pair.A, idle_A[pair.rank :].double()])
    B = torch.nn.functional.pad(pair.B, (0, len(idle_A) - pair.rank))
    return LoraPair(A.to(idle_A.dtype), B.to(idle_A.dtype).contiguous(), scale)


def grown(residual: LoraPair | None, added: ThinSVD, limit: int, dtype: torch.dtype) -> LoraPair | None:
    """Return a residual, of scale 1, with `added` beside it; None as long as there is nothing.

    It is exact up to `limit` components. Beyond, it is factorised anew and its first `limit` directions are kept, which
    is exact too where the limit is the smaller side of the matrix.
    """
    if added.rank == 0:
        return residual
    terms = [(1.0, added.balanced(1.0))] if residual is None else [(1.0, residual), (1.0, added.balanced(1.0))]
    pair = stacked(terms)
    if pair.rank > limit:
        pair = thin_svd(terms, limit).balanced(1.0)
    return LoraPair(pair.A.to(dtype).contiguous(), pair.B.to(dtype).contiguous(), 1.0)


def norm(pair: LoraPair) -> float:
    """Return ‖ΔW‖_F, from matrices of rank × rank numbers."""
    return math.sqrt(max(0.0, inner(pair, pair)))


def inner(one: LoraPair, other: LoraPair) -> float:
    """Return ⟨ΔW, ΔW'⟩_F = s s' Σ (Bᵀ B') ∗ (A A'ᵀ), from matrices of rank × rank' numbers."""
    products = (one.B.double().T @ other.B.double()) * (one.A.double() @ other.A.double().T)
    return one.scale * other.scale * float(products.sum())
