"""Samples to evaluate on, and intervals worked by hand."""

import numpy as np
import pytest

from hellora.client.sample import accuracy_interval, loss_interval, stratified_rows


def test_a_sample_has_each_classs_share() -> None:
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10)
    rows = stratified_rows(labels, 20, seed=3)
    assert np.bincount(labels[rows]).tolist() == [12, 6, 2]
    assert len(set(rows.tolist())) == 20
    assert rows.tolist() == sorted(rows.tolist()) == stratified_rows(labels, 20, seed=3).tolist()
    assert rows.tolist() != stratified_rows(labels, 20, seed=4).tolist()


def test_what_is_left_goes_to_the_largest_remainders() -> None:
    """4 of 5, 3 and 2 rows: shares 2.0, 1.2, 0.8; the last one left goes to 0.8."""
    assert np.bincount(
        np.array([0] * 5 + [1] * 3 + [2] * 2)[stratified_rows(np.array([0] * 5 + [1] * 3 + [2] * 2), 4, 0)]
    ).tolist() == [2, 1, 1]


@pytest.mark.parametrize(
    ("right", "examples", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)]
)
def test_wilsons_interval(right: int, examples: int, low: float, high: float) -> None:
    """As published for 8 of 10; with nothing right z² / (n + z²) = 3.8415 / 13.8415."""
    assert accuracy_interval(right, examples) == pytest.approx((low, high), abs=1e-4)


def test_the_interval_of_a_mean_loss() -> None:
    """1, 2, 3 of weight 1: mean 2, deviation 1, error 1/√3. Sums 2, 6 of 1 and 3 tokens: each has the ratio 2."""
    assert loss_interval(np.array([1.0, 2.0, 3.0]), np.ones(3)) == pytest.approx(
        (2 - 1.959964 / 3**0.5, 2 + 1.959964 / 3**0.5)
    )
    assert loss_interval(np.array([2.0, 6.0]), np.array([1.0, 3.0])) == pytest.approx((2, 2))
    for nothing in (np.array([1.0]), np.zeros(2)):  # one example, or none that counts
        assert loss_interval(np.zeros(len(nothing)), nothing) == (-np.inf, np.inf)
