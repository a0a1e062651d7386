"""random_layers and randomized_geometric: what is drawn, and how often."""

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from factories import context_of, fleet_of, rows_of

from hellora.methods.allocators.geometric import Pattern
from hellora.methods.allocators.random_layers import RandomLayers
from hellora.methods.allocators.randomized_geometric import RandomizedGeometric
from hellora.methods.strategies import Allocator

NINTH, TWO, ONE = Fraction(1, 9), Fraction(2, 27), Fraction(1, 27)


@pytest.mark.parametrize(
    ("pattern", "published"),
    [
        ("bottleneck", [NINTH, NINTH, NINTH, TWO, TWO, ONE, ONE, ONE, TWO, NINTH, NINTH, NINTH]),
        ("triangle", [NINTH] * 6 + [TWO] * 3 + [ONE] * 3),
        ("inverted_triangle", [ONE] * 3 + [TWO] * 3 + [NINTH] * 6),
        ("uniform", [Fraction(1, 12)] * 12),
    ],
)
def test_published_probabilities(pattern: Pattern, published: list[Fraction]) -> None:
    for mix in (fleet_of(6, 9, 12), fleet_of(12, 6, 6, 6, 9, 6, None, 0)):  # groups count, not clients
        p = RandomizedGeometric(pattern).probabilities(context_of(mix))
        assert p.tolist() == [float(fraction) for fraction in published]


@pytest.mark.parametrize("allocator", [RandomLayers(), RandomizedGeometric()], ids=repr)
def test_every_round_client_and_seed_draws_its_own_full_capacity(allocator: Allocator) -> None:
    fleet = fleet_of(6, 6, 9, 12)

    def rows(round: int, seed: int) -> list[list[int]]:
        return rows_of(allocator.allocate(context_of(fleet, round=round, seed=seed))[0].mask)

    rounds = [rows(t, seed=0) for t in range(10)]
    assert all([len(row) for row in drawn] == [6, 6, 9, 12] for drawn in rounds)
    for client in range(3):
        assert len({tuple(drawn[client]) for drawn in rounds}) > 4
    assert sum(drawn[0] != drawn[1] for drawn in rounds) > 4
    assert sum(drawn != rows(t, seed=1) for t, drawn in enumerate(rounds)) > 4


@pytest.mark.parametrize("allocator", [RandomLayers(), RandomizedGeometric()], ids=repr)
def test_a_row_depends_on_nobody_else_in_the_cohort(allocator: Allocator) -> None:
    fleet = fleet_of(6, 9, 12, 6)
    together, _ = allocator.allocate(context_of(fleet, round=3))
    for client in fleet:
        alone, _ = allocator.allocate(context_of(fleet, round=3, cohort=[client]))
        assert np.array_equal(alone.row(client.id), together.row(client.id))


def frequencies(allocator: Allocator) -> npt.NDArray[np.float64]:
    fleet = fleet_of(6, 9, 12)
    rounds = 1500
    masks = [allocator.allocate(context_of(fleet, round=t, cohort=fleet[:1]))[0].mask for t in range(rounds)]
    often: npt.NDArray[np.float64] = np.mean([mask[0, :, 0] for mask in masks], axis=0)
    return often


def test_random_layers_are_equally_likely() -> None:
    np.testing.assert_allclose(frequencies(RandomLayers()), 0.5, atol=0.06)


def test_bottleneck_prefers_both_ends() -> None:
    often = frequencies(RandomizedGeometric())
    ends, shoulders, middle = often[[0, 1, 2, 9, 10, 11]], often[[3, 4, 8]], often[[5, 6, 7]]
    np.testing.assert_allclose(ends, 0.625, atol=0.06)
    assert ends.min() > shoulders.max() > shoulders.min() > middle.max()


def test_unknown_pattern() -> None:
    with pytest.raises(ValueError, match="pattern must be one of"):
        RandomizedGeometric("diamond")  # type: ignore[arg-type]
