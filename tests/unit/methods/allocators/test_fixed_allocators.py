"""everything, exclusive, straggler and geometric: rows that follow from capacities alone."""

from itertools import pairwise

import numpy as np
import pytest
from factories import context_of, fleet_of, rows_of

from hellora.core.errors import InputError
from hellora.core.types import Budget
from hellora.methods.allocators.everything import Everything
from hellora.methods.allocators.exclusive import Exclusive
from hellora.methods.allocators.geometric import Geometric, Pattern, pattern_layers
from hellora.methods.allocators.straggler import Straggler
from hellora.methods.context import RoundContext
from hellora.methods.strategies import Allocator

ALL = list(range(12))


def rows(allocator: Allocator, context: RoundContext) -> list[list[int]]:
    allocation, state = allocator.allocate(context)
    assert state == {}
    return rows_of(allocation.mask)


@pytest.mark.parametrize(
    ("pattern", "six", "nine"),
    [
        ("triangle", [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("inverted_triangle", [6, 7, 8, 9, 10, 11], [3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ("bottleneck", [0, 1, 2, 9, 10, 11], [0, 1, 2, 3, 4, 8, 9, 10, 11]),
        ("uniform", [0, 2, 4, 6, 8, 10], [0, 1, 2, 4, 5, 6, 8, 9, 10]),
    ],
)
def test_published_sets(pattern: Pattern, six: list[int], nine: list[int]) -> None:
    assert rows(Geometric(pattern), context_of(fleet_of(6, 9, 12, 0))) == [six, nine, ALL, []]


@pytest.mark.parametrize("pattern", ["triangle", "inverted_triangle", "bottleneck", "uniform"])
def test_patterns_of_any_size(pattern: Pattern) -> None:
    for num_layers in range(1, 14):
        sets = [pattern_layers(pattern, c, num_layers).tolist() for c in range(num_layers + 1)]
        assert [len(set(layers)) for layers in sets] == list(range(num_layers + 1))
        assert all(layers == sorted(layers) and set(layers) <= set(range(num_layers)) for layers in sets)
        if pattern != "uniform":
            assert all(set(less) < set(more) for less, more in pairwise(sets)), "sets are nested"


def test_unknown_pattern() -> None:
    with pytest.raises(ValueError, match=r"pattern must be one of triangle, .*, not 'diamond'"):
        Geometric("diamond")  # type: ignore[arg-type]


def test_everything_trains_the_deepest_where_not_all_fit() -> None:
    assert rows(Everything(), context_of(fleet_of(None, 12, 2, 0))) == [ALL, ALL, [10, 11], []]


def test_exclusive_trains_full_clients_only() -> None:
    fleet = fleet_of(6, 12, 11, None, 15)
    assert rows(Exclusive(), context_of(fleet)) == [[], ALL, [], ALL, ALL]
    assert rows(Exclusive(), context_of(fleet, cohort=fleet[:1])) == [[]]


def test_exclusive_without_a_full_client_is_an_input_error() -> None:
    with pytest.raises(InputError, match="all 12 layers"):
        Exclusive().allocate(context_of(fleet_of(6, 11)))


def test_straggler_follows_the_weakest_client_of_the_fleet_not_of_the_cohort() -> None:
    fleet = fleet_of(9, 6, 12, 0)
    even = [0, 2, 4, 6, 8, 10]
    assert rows(Straggler(), context_of(fleet)) == [even, even, even, []]
    assert rows(Straggler(), context_of(fleet, cohort=fleet[2:3])) == [even]


def test_straggler_trains_the_smallest_rank_of_each_layer() -> None:
    """The client of no layers and the one of rank 0 can train nothing, so they hold nobody back."""
    fleet = fleet_of(Budget(), Budget(rank=(3, 2, 0, 4)), Budget(3, 3), Budget(0, 1), Budget(4, 0))
    allocation, _ = Straggler().allocate(context_of(fleet, num_layers=4, max_rank=4))
    assert allocation.ranks.tolist() == [[3, 2, 0, 0]] * 3 + [[0, 0, 0, 0]] * 2
    only_the_first, _ = Straggler().allocate(context_of(fleet, num_layers=4, max_rank=4, cohort=fleet[:1]))
    assert only_the_first.ranks.tolist() == [[3, 2, 0, 0]]


def test_rows_cover_every_rank_component() -> None:
    allocation, _ = Geometric().allocate(context_of(fleet_of(6)))
    assert allocation.mask.shape == (1, 12, 2)
    assert np.array_equal(allocation.ranks, [[2, 2, 2, 0, 0, 0, 0, 0, 0, 2, 2, 2]])


def test_exclusive_asks_for_every_layer_at_the_full_rank() -> None:
    fleet = fleet_of(Budget(), Budget(rank=1), Budget(layers=3, rank=2), Budget(layers=2))
    allocation, _ = Exclusive().allocate(context_of(fleet, num_layers=3))
    assert allocation.ranks.tolist() == [[2, 2, 2], [0, 0, 0], [2, 2, 2], [0, 0, 0]]
    with pytest.raises(InputError, match="at the full rank, and the fleet has none"):
        Exclusive().allocate(context_of(fleet[1:2], num_layers=3))
