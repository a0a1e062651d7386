"""Turn layer scores into probabilities, and these into a sample of layers. All is deterministic; numpy is enough."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def kmeans_1d(values: npt.ArrayLike, k: int) -> Indices:
    """Return the exact 1-D k-means clustering, as one label per value; labels ascend with the values, from 0.

    An optimal cluster is an interval of the sorted values, so dynamic programming over the last cluster's start
    finds it: cost(n values, c clusters) = min over start of cost(start, c - 1) + spread(start..n). Equal values
    share a label; fewer distinct values than `k` give fewer clusters. Of equally good clusterings the one whose
    last clusters start lowest is taken.
    """
    points, index, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    k, size = min(k, len(points)), len(points)
    unit = (points - points[0]) / max(points[-1] - points[0], np.finfo(np.float64).tiny)  # no overflow in squares

    spread = np.zeros((size, size + 1))  # of the values start..end-1 around their mean
    for start in range(size):
        for end in range(start + 1, size + 1):
            x, n = unit[start:end], counts[start:end]
            spread[start, end] = n @ (x - (n @ x) / n.sum()) ** 2

    cost = np.full((k + 1, size + 1), np.inf)
    cost[0, 0] = 0.0
    first = np.zeros((k + 1, size + 1), dtype=np.int64)  # where the last of c clusters starts
    for c in range(1, k + 1):
        for end in range(c, size + 1):
            totals = cost[c - 1, :end] + spread[:end, end]
            first[c, end] = np.argmin(totals)
            cost[c, end] = totals[first[c, end]]

    labels = np.empty(size, dtype=np.int64)
    end = size
    for c in range(k, 0, -1):
        start = first[c, end]
        labels[start:end] = c - 1
        end = start
    return labels[index]


def probabilities_from_scores(scores: Floats, clusters: int) -> Floats | None:
    """Make a layer's probability proportional to the rank of its score's cluster: 1 for the lowest … `clusters`.

    Return None where the scores say nothing: some are not finite, or all are equal.
    """
    if not np.isfinite(scores).all() or scores.max() == scores.min():
        return None
    labels = kmeans_1d(scores, clusters)
    weights: Indices = labels + clusters - labels.max()  # the highest cluster weighs `clusters`
    probabilities: Floats = weights / weights.sum()
    return probabilities


def sample_layers(probabilities: Floats, count: int, rng: np.random.Generator) -> Indices:
    """Draw `count` distinct layers, ascending: weighted sampling without replacement, one draw after another."""
    return np.sort(race(probabilities, rng)[:count])


def race(probabilities: Floats, rng: np.random.Generator) -> Indices:
    """Return all places in the order in which they are drawn, one after another without replacement.

    It is done as a race of exponential clocks with rates p: the first to ring is place j with probability p_j / Σ p,
    and the others, being memoryless, then race on from the start: the same distribution as drawing one by one. Places
    of probability 0 come last, in order.
    """
    clocks = -np.log1p(-rng.random(len(probabilities)))
    rings = np.full(len(probabilities), np.inf)
    np.divide(clocks, probabilities, out=rings, where=probabilities > 0)
    return np.argsort(rings, kind="stable")
