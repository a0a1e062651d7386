"""Sum exactly: numbers become integers on a public grid, and integers add up alike in any order and any parts.

    x̂ = round(2^bits · x / s)     |x| ≤ s, a power of two that is public for each column; halves go to the even side
    Σ x̂ ŷᵀ                        over blocks of 2^(53 − 2·bits) rows, of which a float64 product is exact

So the sum over all clients has the same bits for every way in which rows are dealt out, ordered, or added in a tree.
Sums of floats on a grid afterwards have not: the rounding of each partial sum depends on what was summed before.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BATCH = 8  # examples of a forward pass whose features are summed
MOST_BITS = 24  # of a number, as many as float32 has: blocks of 32 rows
MANTISSA = 53  # bits of a float64
WIDTH = 62  # bits of a sum, of the 63 that an int64 has
FIRST, LAST = -15, 16  # exponents that are told apart: columns of numbers from 2^-15 to 2^16


class OffGridError(ValueError):
    """A number does not fit the public grid; whoever has it must not take part with another one in its place."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A grid is public: how fine numbers are, and the largest that each column can have."""

    bits: int  # |x̂| ≤ 2^bits
    scales: Tensor  # (columns,) float64, powers of two

    @staticmethod
    def for_rows(rows: int, scales: Tensor) -> "Grid":
        """Make the finest grid on which products of so many rows add up without overflow, whoever has them."""
        return Grid(min(MOST_BITS, (WIDTH - math.ceil(math.log2(max(rows, 2)))) // 2), scales.double())

    @property
    def one(self) -> int:
        """Return what stands for a scale."""
        return 1 << self.bits

    def integers(self, numbers: Tensor) -> Tensor:
        """Put numbers (rows, columns) on the grid: int64.

        Raises:
            OffGridError: one is larger than its column's scale, or is not finite.
        """
        scaled = numbers.double() / self.scales
        if not (scaled.abs() <= 1).all():  # nan is not, either
            raise OffGridError("an example has features that are not finite, or larger than the run's public scale")
        return (scaled * self.one).round().long()

    def products(self, sums: Tensor) -> Tensor:
        """Return Σ x xᵀ (columns, columns) in float64, of Σ x̂ x̂ᵀ."""
        return sums.double() / self.one**2 * self.scales[:, None] * self.scales

    def numbers(self, sums: Tensor) -> Tensor:
        """Return Σ x (columns, …) in float64, of Σ x̂."""
        return (sums.double() / self.one) * self.scales.reshape(-1, *[1] * (sums.ndim - 1))


def product_sums(integers: Tensor, bits: int) -> Tensor:
    """Return Σ x̂ x̂ᵀ over rows (rows, columns) of at most 2^bits, exactly: int64 (columns, columns)."""
    total = torch.zeros(integers.shape[1], integers.shape[1], dtype=torch.int64)
    for block in torch.split(integers.double(), 2 ** (MANTISSA - 2 * bits)):
        total += (block.T @ block).long()
    return total


def class_sums(integers: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return Σ x̂ over the rows of each class, exactly: int64 (columns, classes); labels (rows,)."""
    total = torch.zeros(classes, integers.shape[1], dtype=torch.int64)
    return total.index_add_(0, labels, integers).T.contiguous()


def upper(square: Tensor) -> Tensor:
    """Return the upper triangle of a symmetric matrix (p, p), row by row: (p(p + 1)/2,)."""
    rows, columns = torch.triu_indices(*square.shape)
    return square[rows, columns]


def symmetric(triangle: Tensor, size: int) -> Tensor:
    """Undo `upper`: return the symmetric matrix (size, size)."""
    rows, columns = torch.triu_indices(size, size)
    square = torch.zeros(size, size, dtype=triangle.dtype)
    square[rows, columns] = triangle
    square[columns, rows] = triangle
    return square


def exponents(numbers: Tensor) -> Tensor:
    """Count in how many rows each column's number has which exponent, up to the next power of two: int64 (columns,
    LAST − FIRST + 1); numbers (rows, columns). Below FIRST all count as FIRST.

    The sum of such counts tells a scale that no client's number is above, and what sums can tell needs no maximum.

    Raises:
        OffGridError: a number is above 2^LAST, or not finite.
    """
    if not (numbers.abs() <= 2.0**LAST).all():
        raise OffGridError(f"an example has features that are not finite, or larger than 2^{LAST}")
    mantissas, powers = torch.frexp(numbers.double())  # |x| = mantissa · 2^power with a mantissa from 1/2 up to 1
    powers = torch.where(mantissas == 0, FIRST, powers - (mantissas.abs() == 0.5).to(powers.dtype))
    places = powers.clamp(FIRST, LAST).long() - FIRST
    counts = torch.zeros(numbers.shape[1], LAST - FIRST + 1, dtype=torch.int64)
    return counts.scatter_add_(1, places.T.contiguous(), torch.ones_like(places.T))


def scales_of(counts: Tensor) -> Tensor:
    """Return the smallest power of two that no number of each column is above: float64 (columns,), of `exponents`."""
    places = torch.arange(counts.shape[1]).expand_as(counts)
    return 2.0 ** (torch.where(counts > 0, places, 0).amax(1) + FIRST).double()
