"""Bounds that one client out of many cannot move: quantiles that somebody has, and what is not finite."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value at place ⌊share · (n − 1)⌋ of n sorted values: one of them, and of two the lower.

    With `share` below 1 it is never the largest of several, whatever that is.
    """
    return sorted(values)[math.floor(share * (len(values) - 1))]


def median(values: Sequence[float]) -> float:
    """Return the median; of an even number the lower of the middle two, so that of two clients the larger bends."""
    return quantile(values, 0.5)


def bounded_weights(weights: Mapping[int, float], most: float | None) -> dict[int, float]:
    """Return weights by client, none above `most` times their median; None bounds nothing."""
    if most is None or not weights:
        return dict(weights)
    limit = most * median(list(weights.values()))
    return {client: min(weight, limit) for client, weight in weights.items()}


def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str:
    """Name the first tensor with a number that is nan or infinite; "" where there is none."""
    return next((name for name, t in named if t.is_floating_point() and not bool(torch.isfinite(t).all())), "")
