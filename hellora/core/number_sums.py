"""Sums of numbers tell their mean and deviation, whoever has which of them.

mean = Σ y / n      deviation = √(Σ y² / n − mean²)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ROUNDING = 1e-12  # relative: what sums of squares may be off by, and more


@dataclass(frozen=True)
class NumberSums:
    """Number sums are those of somebody's examples, of each number that they have."""

    examples: int
    sums: tuple[float, ...]
    squares: tuple[float, ...]

    @staticmethod
    def of(numbers: npt.NDArray[np.float64]) -> "NumberSums":
        """Sum numbers (examples, numbers)."""
        sums, squares = ([math.fsum(column) for column in each.T] for each in (numbers, numbers**2))
        return NumberSums(len(numbers), tuple(sums), tuple(squares))

    @staticmethod
    def together(parts: Sequence["NumberSums"]) -> "NumberSums":
        """Add up the sums of several, exactly, so that their order makes no difference."""
        sums, squares = (
            tuple(math.fsum(column) for column in zip(*each, strict=True))
            for each in ([part.sums for part in parts], [part.squares for part in parts])
        )
        return NumberSums(sum(part.examples for part in parts), sums, squares)

    @property
    def possible(self) -> bool:
        """Return False if no numbers have such sums: (Σ y)² ≤ n Σ y²."""
        pairs = zip(self.sums, self.squares, strict=False)
        known = len(self.sums) == len(self.squares) and all(map(math.isfinite, (*self.sums, *self.squares)))
        return known and all(s * s <= self.examples * q * (1 + ROUNDING) for s, q in pairs)

    @property
    def mean(self) -> tuple[float, ...]:
        """Return the mean of each number, to 6 digits: the same on every machine, and more than are needed."""
        return tuple(rounded(total / self.examples) for total in self.sums)

    @property
    def deviation(self) -> tuple[float, ...]:
        """Return the standard deviation of each number, to 6 digits; 0 where all are alike."""
        found = []
        for total, squares in zip(self.sums, self.squares, strict=True):
            mean, square = total / self.examples, squares / self.examples
            variance = square - mean * mean
            found.append(rounded(math.sqrt(variance)) if variance > ROUNDING * square else 0.0)
        return tuple(found)


def rounded(statistic: float) -> float:
    return float(f"{statistic:.6g}")
