"""The invariants of the values that travel through a round."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from fractions import Fraction

import numpy as np
import pytest
import torch
from factories import random_adapter, tiny_spec

from hellora.core.errors import InputError
from hellora.core.exchange import TrainSettings
from hellora.core.types import Adapter, Allocation, Budget, ClientProfile, LoraPair, Mask

SPEC = tiny_spec(num_layers=3, max_rank=4)
PROFILES = (ClientProfile(4, 10, Budget(layers=2)), ClientProfile(9, 10, Budget(layers=None, rank=2)))


def mask(first: list[int], second: list[int]) -> Mask:
    """Ranks per layer of each of the two clients, as prefixes."""
    return np.array([first, second])[:, :, None] > np.arange(4)


def test_an_allocation_within_every_budget() -> None:
    Allocation((4, 9), mask([4, 0, 4], [2, 1, 2])).check(PROFILES, SPEC)


@pytest.mark.parametrize(
    ("allocation", "message"),
    [
        (Allocation((4, 9), mask([4, 1, 4], [0, 0, 0])), "gave client 4 3 layers, but its budget is 2"),
        (Allocation((4, 9), mask([0, 0, 0], [0, 3, 0])), "gave client 9 rank 3 in layer 1, but its budget there is 2"),
        (Allocation((9, 4), mask([0, 0, 0], [0, 0, 0])), "expected bool"),
        (Allocation((4,), mask([0, 0, 0], [0, 0, 0])), "expected bool"),
        (Allocation((4, 9), mask([0, 0, 0], [0, 0, 0])[:1]), r"mask \(1, 3, 4\) bool, expected bool \(2, 3, 4\)"),
        (Allocation((4, 9), mask([0, 0, 0], [0, 0, 0])[:, :2]), r"mask \(2, 2, 4\) bool, expected bool \(2, 3, 4\)"),
        (Allocation((4, 9), mask([0, 0, 0], [0, 0, 0])[:, :, :3]), r"mask \(2, 3, 3\) bool"),
        (Allocation((4, 9), mask([0, 0, 0], [0, 0, 0]).astype(np.int64)), "mask .* int64, expected bool"),
    ],
)
def test_what_check_refuses(allocation: Allocation, message: str) -> None:
    with pytest.raises(InputError, match=message):
        allocation.check(PROFILES, SPEC)


def test_scattered_rank_components_count_as_rank() -> None:
    scattered = np.zeros((2, 3, 4), dtype=bool)
    scattered[1, 0, [0, 3]] = True
    allocation = Allocation((4, 9), scattered)
    allocation.check(PROFILES, SPEC)
    assert allocation.ranks.tolist() == [[0, 0, 0], [2, 0, 0]]


@pytest.mark.parametrize(
    ("rank", "ranks"),
    [(None, [4, 4, 4]), (0, [0, 0, 0]), (-1, [0, 0, 0]), (3, [3, 3, 3]), (9, [4, 4, 4]), ((0, 2, 9), [0, 2, 4])],
)
def test_ranks_of_a_budget(rank: int | tuple[int, ...] | None, ranks: list[int]) -> None:
    assert Budget(rank=rank).ranks(num_layers=3, max_rank=4).tolist() == ranks
    assert Budget(rank=rank).trains(num_layers=3, max_rank=4) == any(ranks)
    assert not Budget(layers=0, rank=rank).trains(num_layers=3, max_rank=4)


def test_one_rank_per_layer_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"a group of fleet\.ranks has 2 ranks for 3 layers: give one each"):
        Budget(rank=(1, 2)).ranks(num_layers=3, max_rank=4)


def test_an_allocation_is_held_against_each_layers_own_rank() -> None:
    profiles = (ClientProfile(0, 10, Budget(rank=(1, 2, 4))), ClientProfile(1, 10))
    Allocation((0, 1), mask([1, 2, 4], [4, 4, 4])).check(profiles, SPEC)
    with pytest.raises(InputError, match="gave client 0 rank 2 in layer 0, but its budget there is 1"):
        Allocation((0, 1), mask([2, 0, 4], [4, 4, 4])).check(profiles, SPEC)


def test_whole_layers_and_rows() -> None:
    allocation = Allocation.of_layers((4, 9), np.array([[True, False, True], [False, False, False]]), max_rank=4)
    assert allocation.ranks.tolist() == [[4, 0, 4], [0, 0, 0]]
    assert allocation.row(4).tolist() == [[True] * 4, [False] * 4, [True] * 4]
    assert not allocation.row(9).any()


@pytest.mark.parametrize(("layers", "capacity"), [(None, 12), (0, 0), (-1, 0), (5, 5), (12, 12), (15, 12)])
def test_capacity(layers: int | None, capacity: int) -> None:
    assert Budget(layers=layers).capacity(12) == capacity


@pytest.mark.parametrize(
    ("share", "capacities"),  # of models of 1 to 7 layers, and of 12
    [
        (Fraction(1, 3), [1, 1, 1, 1, 2, 2, 2, 4]),  # 0.33, 0.67, 1, 1.33, 1.67, 2, 2.33
        (Fraction(1, 2), [1, 1, 2, 2, 3, 3, 4, 6]),  # a half is rounded up
        (Fraction(2, 3), [1, 1, 2, 3, 3, 4, 5, 8]),
        (Fraction(1, 100), [1, 1, 1, 1, 1, 1, 1, 1]),
        (Fraction(1), [1, 2, 3, 4, 5, 6, 7, 12]),
    ],
)
def test_a_share_of_the_layers_is_rounded_and_at_least_one(share: Fraction, capacities: list[int]) -> None:
    assert [Budget(layers=share).capacity(layers) for layers in (*range(1, 8), 12)] == capacities


@pytest.mark.parametrize(
    ("A", "B"),
    [(torch.zeros(2, 5), torch.zeros(6, 3)), (torch.zeros(5), torch.zeros(6, 3)), (torch.zeros(2, 5), torch.zeros(2))],
)
def test_a_pair_shares_its_rank(A: torch.Tensor, B: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="do not share a rank"):
        LoraPair(A, B, 1.0)


def test_adapter_tensors_and_bytes() -> None:
    pair = LoraPair(torch.zeros(2, 5), torch.zeros(6, 2, dtype=torch.float64), 1.0)
    adapter = Adapter({"block.0.query": pair}, {"bias": torch.zeros(3, dtype=torch.bfloat16)})
    assert set(adapter.tensors()) == {"block.0.query.lora_A", "block.0.query.lora_B", "head.bias"}
    assert adapter.num_bytes == 2 * 5 * 4 + 6 * 2 * 8 + 3 * 2
    assert pair.rank == 2


def test_values_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        random_adapter(SPEC, 0).head = {}  # type: ignore[misc]


def test_layer_of() -> None:
    assert SPEC.num_layers == 3
    assert SPEC.layer_of["block.2.value"] == 2
    assert len(SPEC.layer_of) == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainSettings(lr=0), "lr must be greater than 0, not 0"),
        (lambda: TrainSettings(lr=float("nan")), "lr must be greater than 0"),
        (lambda: TrainSettings(batch_size=0), "batch_size must be greater than 0"),
        (lambda: TrainSettings(epochs=0), "epochs must be greater than 0"),
        (lambda: TrainSettings(steps=0), "steps must be greater than 0"),
        (lambda: TrainSettings(clip_norm=-1), "clip_norm must be greater than 0"),
        (lambda: TrainSettings(weight_decay=-0.1), "must not be negative"),
        (lambda: TrainSettings(optimizer="sgd", momentum=-0.1), "must not be negative"),
        (lambda: TrainSettings(warmup=-0.1), "warmup is a share of the schedule's steps"),
        (lambda: TrainSettings(warmup=1.0), "warmup is a share of the schedule's steps"),
        (lambda: TrainSettings(momentum=0.9), "momentum is a setting of optimizer = 'sgd'"),
    ],
)
def test_train_settings_are_checked(make: Callable[[], TrainSettings], message: str) -> None:
    TrainSettings(steps=3, clip_norm=1.0, optimizer="sgd", momentum=0.9)
    with pytest.raises(ValueError, match=message):
        make()
