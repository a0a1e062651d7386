"""Choose some examples to evaluate on, and say how far what they show may be from what all would."""

import math

import numpy as np
import numpy.typing as npt

from hellora.core.seeds import rng_for

Z = 1.959964  # standard deviations on either side of a mean that hold 95 % of a normal distribution
Interval = tuple[float, float]


def stratified_rows(labels: npt.NDArray[np.int64], count: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw `count` of the rows by seed, in their order: of each class its share, by largest remainder.

    `labels` (rows,) has the class of each; where all are alike, the sample is a plain one.
    """
    rng = rng_for(seed, "evaluation sample")
    classes, sizes = np.unique(labels, return_counts=True)
    exact = count * sizes / len(labels)
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: count - counts.sum()]] += 1
    drawn = [rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(classes, counts, strict=True)]
    return np.sort(np.concatenate(drawn))


def accuracy_interval(right: int, examples: int) -> Interval:
    """Return the 95 % interval of a share that `right` of the examples show (Wilson, 1927)."""
    share, spread = right / examples, Z * Z / examples
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / examples + spread / (4 * examples))
    return max(0.0, middle - half), min(1.0, middle + half)


def loss_interval(losses: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> Interval:
    """Return the 95 % interval of Σ losses / Σ weights, both (examples,): normal, of a ratio of two means.

    The standard error of the ratio r is √(Σ (lᵢ − r wᵢ)² / (n − 1) / n) over the mean weight. Of one example nothing is
    known.
    """
    examples = len(losses)
    if examples < 2 or not weights.any():
        return -math.inf, math.inf
    ratio = losses.sum() / weights.sum()
    error = math.sqrt(((losses - ratio * weights) ** 2).sum() / (examples - 1) / examples) / weights.mean()
    return float(ratio - Z * error), float(ratio + Z * error)
