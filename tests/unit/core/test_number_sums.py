"""Means and deviations of sums, against numpy; the same however numbers are dealt out."""

import numpy as np
import pytest

from hellora.core.number_sums import NumberSums

NUMBERS = np.random.default_rng(0).normal([3.0, 1.7e6], [0.5, 40.0], (301, 2))  # one far from 0


def test_sums_tell_mean_and_deviation_whoever_has_which_number() -> None:
    whole = NumberSums.of(NUMBERS)
    np.testing.assert_allclose(whole.mean, NUMBERS.mean(0), rtol=1e-5)
    np.testing.assert_allclose(whole.deviation, NUMBERS.std(0), rtol=1e-4)
    parts = [NumberSums.of(part) for part in np.array_split(NUMBERS[::-1], 7)]
    together = NumberSums.together(parts)
    assert (together.examples, together.mean, together.deviation) == (301, whole.mean, whole.deviation)
    assert together.possible


def test_numbers_that_are_alike_have_no_deviation() -> None:
    assert NumberSums.of(np.full((30, 1), 0.1)).deviation == (0.0,)


@pytest.mark.parametrize(
    "sums", [NumberSums(2, (3.0,), (4.0,)), NumberSums(2, (1.0,), ()), NumberSums(1, (1e200,), (1.0,))]
)
def test_sums_that_no_numbers_have_are_told(sums: NumberSums) -> None:
    assert not sums.possible
