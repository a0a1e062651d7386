"""From scores to probabilities to samples."""

from collections.abc import Sequence
from itertools import combinations

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings

from hellora.methods.layer_sampling import kmeans_1d, probabilities_from_scores, sample_layers

BOTTLENECK = np.array([3, 3, 3, 2, 2, 1, 1, 1, 2, 3, 3, 3]) / 27


def spread(values: npt.NDArray[np.float64], labels: Sequence[int] | npt.NDArray[np.int64]) -> float:
    """The k-means objective."""
    groups = [values[np.asarray(labels) == label] for label in set(labels)]
    return float(sum(((group - group.mean()) ** 2).sum() for group in groups))


def brute_force(values: npt.NDArray[np.float64], k: int) -> float:
    """The best objective over all partitions of the sorted values into k intervals."""
    values, size = np.sort(values), len(values)
    return min(
        spread(values, np.searchsorted(cuts, np.arange(size), side="right"))
        for cuts in combinations(range(1, size), k - 1)
    )


@settings(derandomize=True, deadline=None, database=None)
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=9), st.integers(1, 4))
def test_kmeans_is_optimal_and_labels_ascend(numbers: list[int], k: int) -> None:
    values = np.array(numbers, dtype=np.float64)
    labels = kmeans_1d(values, k)
    clusters = min(k, len(set(numbers)))
    assert set(labels) == set(range(clusters))
    by_value = labels[np.argsort(values, kind="stable")]
    assert (np.diff(by_value) >= 0).all()
    assert spread(values, labels) == pytest.approx(brute_force(values, clusters), abs=1e-9)


def test_kmeans_labels_follow_the_values_not_their_places() -> None:
    assert kmeans_1d([7.0, 0.1, 7.5, 3.0, 0.0], 3).tolist() == [2, 0, 2, 1, 0]


def test_kmeans_counts_equal_values_as_often_as_they_occur() -> None:
    """Joining the 4 to eight zeros costs 14.2, to the 9 it costs 12.5; to a single zero it would cost 8."""
    assert kmeans_1d([0.0] * 8 + [4.0, 9.0], 2).tolist() == [0] * 8 + [1, 1]


@pytest.mark.parametrize("factor", [1e-200, 1e-30, 1e30, 1e200])
def test_kmeans_does_not_depend_on_the_unit_of_the_values(factor: float) -> None:
    assert kmeans_1d(factor * np.array([5.0, 1.0, 1.2, 9.0, 5.5]), 3).tolist() == [1, 0, 0, 2, 1]


def test_probabilities_by_hand() -> None:
    scores = np.array([7.0, 0.1, 7.5, 3.0, 0.0])
    p = probabilities_from_scores(scores, clusters=3)
    assert p is not None
    assert p.tolist() == [3 / 10, 1 / 10, 3 / 10, 2 / 10, 1 / 10]


def test_published_weights_per_layer() -> None:
    p = probabilities_from_scores(np.repeat([9.0, 5.0, 1.0, 5.5, 9.5], [3, 2, 3, 1, 3]), clusters=3)
    assert p is not None
    assert p.tolist() == BOTTLENECK.tolist()


def test_two_distinct_scores_get_the_two_highest_weights() -> None:
    p = probabilities_from_scores(np.array([1.0, 4.0, 1.0]), clusters=3)
    assert p is not None
    assert p.tolist() == [2 / 7, 3 / 7, 2 / 7]


@pytest.mark.parametrize("scores", [[1.0, np.nan, 2.0], [1.0, np.inf, 2.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
def test_scores_that_say_nothing_give_no_probabilities(scores: list[float]) -> None:
    assert probabilities_from_scores(np.array(scores), clusters=3) is None


def exact_inclusion(p: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """Per layer, the probability to be among `count` sequential weighted draws without replacement; all orders."""
    reached = {0: 1.0}  # probability of each set, as bits, after some draws
    for _ in range(count):
        after: dict[int, float] = {}
        for drawn, probability in reached.items():
            left = [j for j in range(len(p)) if not drawn >> j & 1]
            for j in left:
                after[drawn | 1 << j] = after.get(drawn | 1 << j, 0.0) + probability * p[j] / p[left].sum()
        reached = after
    return np.array([sum(q for drawn, q in reached.items() if drawn >> j & 1) for j in range(len(p))])


def test_inclusion_is_that_of_sequential_draws() -> None:
    exact = exact_inclusion(BOTTLENECK, 6)
    assert 0.62 < exact[0] < 0.63  # not 6 · 1/9 = 0.667
    rng, draws = np.random.default_rng(0), 6000
    counts = np.zeros(12)
    for _ in range(draws):
        counts[sample_layers(BOTTLENECK, 6, rng)] += 1
    np.testing.assert_allclose(counts / draws, exact, atol=0.025)  # four standard errors


@pytest.mark.parametrize("count", [0, 1, 6, 12])
def test_layers_are_distinct_and_ascending(count: int) -> None:
    layers = sample_layers(BOTTLENECK, count, np.random.default_rng(1))
    assert len(layers) == count
    assert (np.diff(layers) > 0).all()


def test_layers_of_probability_0_come_last() -> None:
    p = np.array([0.0, 0.5, 0.0, 0.5])
    for seed in range(20):
        assert sample_layers(p, 2, np.random.default_rng(seed)).tolist() == [1, 3]
    assert sample_layers(p, 3, np.random.default_rng(0)).tolist() == [0, 1, 3]
