"""Named tensors: what was declared, and what is not of that kind."""

from typing import Any

import pytest
import torch

from hellora.core.errors import InputError
from hellora.core.exchange import ClientTask, Declared, Policy, TensorSpec, TrainSettings, problem_with_named
from hellora.core.state import ServerState, owned, select
from hellora.core.types import Adapter

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (torch.tensor([0.5, 1.0]), None),
        (torch.tensor([0.5]), "is torch.float32 (1,), expected torch.float32 (2,)"),
        (torch.tensor([[0.5, 1.0]]), "is torch.float32 (1, 2), expected torch.float32 (2,)"),
        (torch.tensor([0.5, 1.0], dtype=torch.float64), "is torch.float64 (2,), expected torch.float32 (2,)"),
        (torch.tensor([0.5, NAN]), "has nan or infinite values"),
        (torch.tensor([-INF, 1.0]), "has nan or infinite values"),
        (torch.tensor([-0.1, 1.0]), "has values outside 0 to 1"),
        (torch.tensor([0.1, 1.1]), "has values outside 0 to 1"),
    ],
)
def test_what_a_spec_refuses(tensor: torch.Tensor, problem: str | None) -> None:
    assert TensorSpec((2,), low=0, high=1).problem_with(tensor) == problem


def test_nan_may_stand_where_there_is_nothing_to_say() -> None:
    spec = TensorSpec((2,), low=0, may_be_nan=True)
    assert spec.problem_with(torch.tensor([NAN, NAN])) is None
    assert spec.problem_with(torch.tensor([NAN, INF])) == "has nan or infinite values"
    assert spec.problem_with(torch.tensor([NAN, -1.0])) == "has values outside 0 to inf"


def test_whole_numbers_are_bounded_too() -> None:
    spec = TensorSpec((), torch.int64, low=1, high=3)
    assert [spec.problem_with(torch.tensor(n)) is None for n in (0, 1, 3, 4)] == [False, True, True, False]


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"a": torch.zeros(2), "b": torch.zeros(1)}, None),
        ({"a": torch.zeros(2)}, None),
        ({"b": torch.zeros(1)}, "report a is absent"),
        ({"a": torch.zeros(2), "z": torch.zeros(1), "c": torch.zeros(1)}, "report c was not declared"),
        ({"a": torch.zeros(2), "b": torch.ones(2)}, "report b is torch.float32 (2,), expected torch.float32 (1,)"),
    ],
)
def test_named_tensors_are_held_against_what_was_declared(tensors: Any, problem: str | None) -> None:
    declared = {"a": TensorSpec((2,)), "b": TensorSpec((1,), optional=True)}
    assert problem_with_named(tensors, declared, "report") == problem


def test_bytes_by_hand() -> None:
    """4 of the brief, 24 of the report, 2 × 6 kept: before and after."""
    declared = Declared(
        brief={"r/x": TensorSpec(())},
        report={"r/y": TensorSpec((3,), torch.float64)},
        kept={"r/z": TensorSpec((2, 3), torch.uint8)},
        scratch_bytes=100,
    )
    assert (declared.bytes_down, declared.bytes_up, declared.bytes_held) == (4, 24, 4 + 24 + 2 * 6 + 100)
    assert Declared().bytes_held == 0
    assert TensorSpec.of(torch.zeros(2, 5, dtype=torch.bfloat16)) == TensorSpec((2, 5), torch.bfloat16)


def test_a_prefix_cache_needs_batches_that_come_again() -> None:
    row: Any = torch.ones(1, 1, dtype=torch.bool).numpy()
    cached = Policy(prefix_cache="memory")
    ClientTask(0, 0, 0, Adapter({}), row, TrainSettings(same_batches=True), policy=cached)
    with pytest.raises(InputError, match=r"a prefix cache needs train\.same_batches = true"):
        ClientTask(0, 0, 0, Adapter({}), row, TrainSettings(), policy=cached)


def test_tensors_of_one_owner() -> None:
    """A name is its owner's as a whole: "allocator" has nothing of "allocator2"."""
    mine, other = {"x": torch.zeros(1), "a/b": torch.ones(2)}, {"x": torch.ones(1)}
    together = {**owned(mine, "allocator"), **owned(other, "allocator2")}
    assert set(together) == {"allocator/x", "allocator/a/b", "allocator2/x"}
    assert select(together, "allocator") == mine
    assert select(together, "allocator2") == other
    assert select(together, "nobody") == {}


def test_what_is_private_of_a_state() -> None:
    head, variate = torch.ones(2), torch.zeros(3)
    kept = {4: {"private/head.bias": head, "scaffold/x": variate}, 7: {"scaffold/x": variate}}
    assert ServerState(0, Adapter({}), kept=kept).private == {4: {"head.bias": head}}
