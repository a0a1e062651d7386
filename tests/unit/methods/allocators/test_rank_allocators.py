"""random_ranks, self_pruning and depth_from_output: which rank components, by hand and by frequency."""

import numpy as np
import pytest
import torch
from factories import context_of, fleet_of

from hellora.core.types import Budget
from hellora.methods.allocators.depth_from_output import DepthFromOutput
from hellora.methods.allocators.everything import Everything
from hellora.methods.allocators.random_ranks import RandomRanks
from hellora.methods.allocators.self_pruning import SelfPruning

# --------------------------------------------------------------------------------------------------------------- random


def test_the_same_components_in_every_layer_drawn_anew_each_round() -> None:
    fleet = fleet_of(Budget(rank=3), Budget(layers=2, rank=3), Budget())
    seen = set()
    for round in range(20):
        allocation, state = RandomRanks().allocate(context_of(fleet, num_layers=4, max_rank=8, round=round))
        assert state == {}
        assert allocation.ranks.tolist() == [[3, 3, 3, 3], [0, 0, 3, 3], [8, 8, 8, 8]]
        first, second, _ = allocation.mask
        assert (first == first[0]).all()
        assert (second[2] == second[3]).all()
        seen |= {tuple(np.flatnonzero(first[0])), tuple(np.flatnonzero(second[3]))}
    assert len(seen) > 25, "of 56 sets, each client draws its own"


def test_every_component_is_as_likely() -> None:
    fleet = fleet_of(Budget(rank=3))
    masks = [RandomRanks().allocate(context_of(fleet, num_layers=1, max_rank=8, round=t))[0].mask for t in range(1500)]
    np.testing.assert_allclose(np.mean(masks, axis=0)[0, 0], 3 / 8, atol=0.05)


def test_unequal_ranks_of_layers_are_nested() -> None:
    for round in range(5):
        fleet = fleet_of(Budget(rank=(1, 3, 0, 5)))
        (row,) = RandomRanks().allocate(context_of(fleet, num_layers=4, max_rank=6, round=round))[0].mask
        assert row.sum(axis=1).tolist() == [1, 3, 0, 5]
        assert (row[0] <= row[1]).all()
        assert (row[1] <= row[3]).all()


# --------------------------------------------------------------------------------------------------------- self-pruning


def test_a_reported_rank_is_kept_until_another_is_reported() -> None:
    """Clients 10, 13 and 16 with budgets 4, 6 and (1, 6)."""
    fleet = fleet_of(Budget(rank=4), Budget(rank=6), Budget(rank=(1, 6)))

    def allocated(reported: dict[int, int], state: dict[str, torch.Tensor] | None) -> tuple[list[list[int]], object]:
        context = context_of(fleet, num_layers=2, max_rank=8, state=state, ranks=reported)
        allocation, state_after = SelfPruning().allocate(context)
        assert (np.sort(allocation.mask, axis=2)[:, :, ::-1] == allocation.mask).all(), "prefixes"
        return allocation.ranks.tolist(), state_after

    ranks, state = allocated({}, None)
    assert (ranks, state) == ([[4, 4], [6, 6], [1, 6]], {})
    ranks, state = allocated({16: 5, 13: 3}, state)  # type: ignore[arg-type]
    assert ranks == [[4, 4], [3, 3], [1, 5]]
    ranks, state = allocated({10: 3, 16: 4}, state)  # type: ignore[arg-type]
    assert ranks == [[3, 3], [3, 3], [1, 4]]
    ranks, state = allocated({}, state)  # type: ignore[arg-type]
    assert ranks == [[3, 3], [3, 3], [1, 4]]
    assert {name: value.tolist() for name, value in state.items()} == {"ranks": [[10, 3], [13, 3], [16, 4]]}  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------------- depth from output


@pytest.mark.parametrize(
    ("budget", "smallest", "ranks"),
    [
        (Budget(4, 8), 0.25, [0, 0, 2, 4, 6, 8]),  # shares 1/4, 2/4, 3/4, 1
        (Budget(None, 8), 0.5, [4, 5, 6, 6, 7, 8]),  # shares 0.5, 0.6 … : 4, 4.8, 5.6, 6.4, 7.2, 8
        (Budget(1, 8), 0.25, [0, 0, 0, 0, 0, 8]),
        (Budget(0, 8), 0.25, [0] * 6),
        (Budget(3, 2), 0.1, [0, 0, 0, 1, 1, 2]),  # 0.2 is raised to 1; 1.1; 2
        (Budget(3, (9, 9, 9, 0, 4, 3)), 0.5, [0, 0, 0, 0, 3, 3]),  # 4 · 0.75 and 3; no rank, no training
        (Budget(4, 8), 1.0, [0, 0, 8, 8, 8, 8]),
    ],
)
def test_ranks_grow_towards_the_output(budget: Budget, smallest: float, ranks: list[int]) -> None:
    context = context_of(fleet_of(budget), num_layers=6, max_rank=8)
    allocation, state = DepthFromOutput(smallest).allocate(context)
    assert allocation.ranks.tolist() == [ranks]
    assert state == {}
    assert not (np.diff(allocation.mask.astype(int), axis=2) > 0).any(), "prefixes"


def test_a_flat_slope_is_everything() -> None:
    context = context_of(fleet_of(Budget(2, 3), None, Budget(9, (1, 2, 3, 4))), num_layers=4, max_rank=4)
    assert np.array_equal(DepthFromOutput(1.0).allocate(context)[0].mask, Everything().allocate(context)[0].mask)


@pytest.mark.parametrize("smallest", [0.0, 1.1, -1, float("nan")])
def test_wrong_slope(smallest: float) -> None:
    with pytest.raises(ValueError, match="smallest must be greater than 0 and at most 1"):
        DepthFromOutput(smallest)
