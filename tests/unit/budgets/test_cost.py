"""What a row costs, by hand: parts, bytes that stand, bytes that move, operations."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from factories import tiny_spec

from hellora.budgets.coefficients import ActivationPolicy, BlockCoefficients, StepCoefficients
from hellora.budgets.cost import FLOAT, CostModel, Work
from hellora.core.exchange import Declared, Policy, TensorSpec
from hellora.core.types import Mask, Sent
from hellora.methods.dispatchers.bypass import Bypass
from hellora.methods.dispatchers.truncate import Truncate

# Of a layer of `tiny_spec`: two modules, 5 → 6 and 5 → 3.
WIDTH = {"A": 5 + 5, "B": 6 + 3, "both": 19}
AREA = 5 * 6 + 5 * 3


def law(constant: float = 0.0, by_example: float = 0.0, by_rank: float = 0.0) -> Any:
    """(4, 3): the same for each of three layers."""
    return np.repeat(np.array([[constant], [by_example], [0.0], [by_rank]]), 3, axis=1)


LAWS = StepCoefficients(
    {
        "off": BlockCoefficients(law(), law(0, 10), law(), law()),
        "first": BlockCoefficients(law(0, 50, 1), law(0, 60, 1), law(0, 45, 1), law(0, 80, 1)),
        "frozen": BlockCoefficients(law(0, 40), law(0, 55), law(0, 40), law(0, 70)),
        "trained": BlockCoefficients(law(0, 48, 1), law(0, 58, 1), law(0, 44, 1), law(0, 75, 1)),
    },
    start=np.array([7.0, 5, 0, 0]),
    enter=np.array([0.0, 4, 0, 0]),
    head=np.array([0.0, 30, 0, 0]),
    end=np.array([0.0, 2, 0, 0]),
    head_backward=np.array([0.0, 20, 0, 0]),
)


def bypass(row: Mask) -> Sent:
    return Bypass().sends(row, tiny_spec(3, 4))


def truncate(row: Mask) -> Sent:
    return Truncate().sends(row, tiny_spec(3, 4))


def model(**changes: Any) -> CostModel:
    spec = tiny_spec(3, 4)
    settings: dict[str, Any] = {
        "spec": spec,
        "steps": {ActivationPolicy(): LAWS},
        "weights_bytes": 1000,
        "weight_item_bytes": 2,
        "head_sizes": (6, 2),
        "optimizer_numbers": 2,
        "block_operations": np.array([100.0, 200.0, 300.0]),
        "head_operations": 50.0,
        "hidden_bytes": 12,
        "tokens": 6,
    }
    return CostModel(**{**settings, **changes})


@pytest.mark.parametrize(
    ("ranks", "parts"),
    [
        ([0, 0, 0], ["off", "off", "off"]),
        ([0, 0, 4], ["off", "off", "first"]),
        ([0, 1, 0], ["off", "first", "frozen"]),
        ([2, 0, 1], ["first", "frozen", "trained"]),
        ([1, 1, 1], ["first", "trained", "trained"]),
    ],
)
def test_parts_of_a_row(ranks: list[int], parts: list[str]) -> None:
    found = model().parts(np.array(ranks))
    assert [next(name for name, where in found.items() if where[j]) for j in range(3)] == parts
    assert sum(where.sum() for where in found.values()) == 3


@pytest.mark.parametrize(
    ("ranks", "parts"),
    [([0, 0, 0], ["frozen"] * 3), ([0, 2, 0], ["frozen", "trained", "frozen"]), ([1, 1, 1], ["trained"] * 3)],
)
def test_with_embeddings_a_gradient_goes_through_every_block(ranks: list[int], parts: list[str]) -> None:
    found = model(trains_below=True).parts(np.array(ranks))
    assert [next(name for name, where in found.items() if where[j]) for j in range(3)] == parts


def test_peak_of_a_row_by_hand() -> None:
    """Ranks 0, 2, 0 on 3 examples: off, first, frozen. Every moment of the step:

    start 22; enter 12; forward 12 + 30, 12 + 186, 12 + 156 + 165 = 333; head 12 + 156 + 120 + 90 = 378;
    end 6; head backward 6 + 141 + 120 + 60 = 327; backward 6 + 141 + 210 = 357, 6 + 246.
    """
    cost, ranks, work = model(), np.array([0, 2, 0]), Work(3, 8)
    assert cost.step_bytes(ranks, LAWS, 3) == 378
    assert cost.peak_bytes(ranks, Policy(), work) == cost.standing_bytes(ranks, Policy()) + 378
    late = replace(LAWS, head=LAWS.head / 3)
    assert cost.step_bytes(ranks, late, 3) == 357
    later = replace(late, blocks={**LAWS.blocks, "frozen": replace(LAWS.blocks["frozen"], backward=law(0, 40))})
    assert cost.step_bytes(ranks, later, 3) == 333
    assert cost.step_bytes(ranks, replace(later, head_backward=np.array([0.0, 40, 0, 0])), 3) == 387
    assert cost.step_bytes(ranks, replace(later, start=np.array([500.0, 0, 0, 0])), 3) == 500


def test_micro_batches_hold_fewer_examples_but_no_more_than_there_are() -> None:
    cost, ranks = model(), np.array([1, 1, 1])
    peaks = [cost.peak_bytes(ranks, Policy(micro_batch=size), Work(8, 8)) for size in (1, 4, 8, 99, None)]
    assert peaks == sorted(peaks)
    assert peaks[0] < peaks[1] < peaks[2] == peaks[3] == peaks[4]
    assert cost.peak_bytes(ranks, Policy(), Work(3, 8)) == cost.peak_bytes(ranks, Policy(micro_batch=3), Work(9, 8))


def test_blocks_that_are_left_out_only_run_once() -> None:
    """Ranks 2, 0, 0: forward 4 + 62, then 4 + 52 + 10 for the blocks that run without gradient; head 4 + 52 + 30."""
    cost = model(sends=bypass)
    assert cost.step_bytes(np.array([2, 0, 0]), LAWS, 1) == 4 + 52 + 30
    assert model().step_bytes(np.array([2, 0, 0]), LAWS, 1) == 4 + 52 + 40 + 40 + 30


def test_standing_bytes_by_hand() -> None:
    """Weights, copies of folded weights, what was received, and value, gradient and two moments of what is trained."""
    ranks = np.array([4, 1, 0])
    trained = 5 * WIDTH["both"]
    received = 12 * WIDTH["both"] * FLOAT
    moving = (trained + 8) * 4 * FLOAT
    assert model().standing_bytes(ranks, Policy()) == 1000 + 2 * 2 * AREA + received + moving
    beside = 7 * WIDTH["both"] * FLOAT  # copies of the components that are frozen
    assert model().standing_bytes(ranks, Policy(merge=False)) == 1000 + beside + received + moving
    sgd = model(optimizer_numbers=0)
    assert sgd.standing_bytes(ranks, Policy(merge=False)) == 1000 + beside + received + (trained + 8) * 2 * FLOAT


def test_folding_holds_a_dense_update_twice_for_a_moment() -> None:
    """Of the largest module, even where the step itself holds less."""
    cost, ranks = model(), np.array([0, 0, 1])
    largest = max(module.d_in * module.d_out for module in cost.spec.modules)
    none = {
        part: replace(
            coefficients,
            keep=coefficients.keep * 0,
            forward=coefficients.forward * 0,
            release=coefficients.release * 0,
            backward=coefficients.backward * 0,
        )
        for part, coefficients in LAWS.blocks.items()
    }
    zero = np.zeros(4)
    quiet = replace(LAWS, blocks=none, start=zero, enter=zero, head=zero, end=zero, head_backward=zero)
    light = replace(cost, steps={ActivationPolicy(): quiet})
    assert light.peak_bytes(ranks, Policy(), Work(1, 1)) == light.standing_bytes(ranks, Policy()) + 2 * FLOAT * largest
    beside = Policy(merge=False)
    stepping = 2 * FLOAT * 6  # two copies of the largest trained tensor, (6, 1)
    assert light.peak_bytes(ranks, beside, Work(1, 1)) == light.standing_bytes(ranks, beside) + stepping


def test_what_an_optimizer_holds_by_hand() -> None:
    """Ranks 0, 0, 1: tensors of 5, 6, 5 and 3 numbers, and a head of 5000, whose states have 8 bits."""
    ranks = np.array([0, 0, 1])
    usual = model(head_sizes=(5000,))
    eight = replace(usual, states_in_8_bits=True)
    assert eight.trained_sizes(ranks) == [5, 6, 5, 3, 5000]
    saved = usual.standing_bytes(ranks, Policy()) - eight.standing_bytes(ranks, Policy())
    assert saved == 2 * (5000 * FLOAT) - 2 * (5000 + 20 * FLOAT) - 2048
    assert model(factors="A").trained_sizes(ranks) == [5, 5, 6, 2]
    for cost, copies in ((usual, 2), (eight, 5)):
        held = cost.peak_bytes(ranks, Policy(), Work(1, 1)) - cost.standing_bytes(ranks, Policy())
        assert held == copies * FLOAT * 5000


def test_standing_bytes_where_less_is_sent_or_trained() -> None:
    ranks = np.array([4, 1, 0])
    trained = 5 * WIDTH["both"]
    moving = (trained + 8) * 4 * FLOAT
    # A layer that trains nothing comes whole, to be folded; another only with what it trains.
    truncated = model(sends=truncate).standing_bytes(ranks, Policy())
    assert truncated == 1000 + 2 * AREA + 9 * WIDTH["both"] * FLOAT + moving
    bypassed = model(sends=bypass).standing_bytes(ranks, Policy())
    assert bypassed == 1000 + 2 * AREA + 8 * WIDTH["both"] * FLOAT + moving
    only_b = model(factors="B").standing_bytes(ranks, Policy(merge=False))
    moving = (5 * WIDTH["B"] + 8) * 4 * FLOAT
    assert only_b == 1000 + (12 + 7) * WIDTH["both"] * FLOAT + 5 * WIDTH["A"] * FLOAT + moving


def test_uplink_by_hand() -> None:
    ranks = np.array([4, 1, 0])
    assert model().uplink(ranks) == FLOAT * (5 * 19 + 8)
    assert model(travels=("A",), head_sizes=()).uplink(ranks) == FLOAT * 5 * 10
    assert model(travels=("A", "B"), sends_head=False).uplink(ranks) == FLOAT * 5 * 10, "the larger of alternate rounds"
    assert model().uplink(np.zeros(3, dtype=np.int64)) == FLOAT * 8
    assert model(wire="bf16").uplink(ranks) == 2 * (5 * 19 + 8)
    assert model(wire="int8", head_scales=3).uplink(ranks) == 5 * 19 + 8 + 4 * (5 * 2 * 2 + 3), "A and B of 2 modules"
    assert model(wire="int8", head_scales=3, travels=("B",), sends_head=False).uplink(ranks) == 5 * 9 + 4 * 5 * 2


def test_named_tensors_by_hand() -> None:
    """A brief of 3 numbers and a report of 5 for each trained component are held; what is kept, is held twice."""

    def declares(row: Mask) -> Declared:
        count = int(row.sum())
        return Declared(
            brief={"r/x": TensorSpec((count, 3))},
            report={"r/y": TensorSpec((count, 5))},
            kept={"r/z": TensorSpec((7,))},
            scratch_bytes=11,
        )

    ranks, plain, ruled = np.array([4, 1, 0]), model(), model(declares=declares)
    assert ruled.uplink(ranks) == plain.uplink(ranks) + FLOAT * 5 * 5
    held = FLOAT * (5 * 3 + 5 * 5 + 2 * 7) + 11
    assert ruled.standing_bytes(ranks, Policy()) == plain.standing_bytes(ranks, Policy()) + held
    assert model(declares=declares, wire="int8").uplink(ranks) == model(wire="int8").uplink(ranks) + FLOAT * 5 * 5


def test_operations_by_hand() -> None:
    """Off forward only, the rest forward and backward; 6 per trained number and token; the head three times."""
    cost, ranks, work = model(), np.array([0, 2, 0]), Work(10, 4, epochs=3)
    step = 2 * 200 + 2 * 300 + 6 * 6 * 2 * 19 + 3 * 50
    assert cost.operations(ranks, Policy(), work) == 10 * (3 * step + 3 * 100)
    assert cost.operations(ranks, Policy(recompute="frozen"), work) == 10 * (3 * (step + 300) + 3 * 100)
    assert cost.operations(ranks, Policy(recompute="all"), work) == 10 * (3 * (step + 500) + 3 * 100)
    assert cost.operations(ranks, Policy(prefix_cache="disk"), work) == 10 * (3 * step + 100)
    half = Policy(prefix_cache="memory", prefix_cache_bytes=5 * 12)
    assert cost.operations(ranks, half, work) == 10 * (3 * step + 2 * 100)
    assert model(sends=bypass).operations(ranks, Policy(), work) == 10 * 3 * (step - 2 * 300)


def test_a_step_of_several_passes_takes_their_time_and_the_memory_of_one() -> None:
    """Of a prefix that is cached, each example goes through it once, however often it comes."""
    one, cost, ranks, work = model(), model(passes=4), np.array([0, 2, 0]), Work(10, 4, epochs=3)
    step = 2 * 200 + 2 * 300 + 6 * 6 * 2 * 19 + 3 * 50
    assert cost.operations(ranks, Policy(), work) == 10 * (12 * step + 12 * 100)
    assert cost.operations(ranks, Policy(prefix_cache="disk"), work) == 10 * (12 * step + 100)
    half = Policy(prefix_cache="memory", prefix_cache_bytes=5 * 12)
    assert cost.operations(ranks, half, work) == 10 * (12 * step + 6.5 * 100)
    assert cost.peak_bytes(ranks, Policy(), work) == one.peak_bytes(ranks, Policy(), work)
    assert cost.uplink(ranks) == one.uplink(ranks)


def test_more_layers_take_more() -> None:
    cost, work = model(), Work(8, 8)
    rows = [np.array(ranks) for ranks in ([0, 0, 1], [0, 0, 4], [0, 4, 4], [4, 0, 4], [4, 4, 4])]
    operations = [cost.operations(ranks, Policy(), work) for ranks in rows]
    assert operations == sorted(operations)
    uplinks = [cost.uplink(ranks) for ranks in rows]
    assert uplinks == sorted(uplinks)


def test_a_prefix_cache_holds_what_it_keeps_and_the_copy_in_use() -> None:
    cost, ranks = model(), np.array([0, 0, 4])
    work = Work(10, 4, epochs=2)
    assert cost.cached_bytes(ranks, Policy(), work) == 0
    assert cost.cached_bytes(ranks, Policy(prefix_cache="memory"), work) == 10 * 12 + 4 * 12
    assert cost.cached_bytes(ranks, Policy(prefix_cache="memory", prefix_cache_bytes=30), work) == 30 + 4 * 12
    assert cost.cached_bytes(ranks, Policy(prefix_cache="disk", micro_batch=1), work) == 12
    kept = Policy(prefix_cache="memory")
    assert cost.cached_bytes(np.array([1, 0, 0]), kept, work) == 0, "nothing lies below"
    assert cost.cached_bytes(ranks, kept, replace(work, epochs=1)) == 0, "no batch comes again"
    assert model(sends=bypass).cached_bytes(ranks, kept, work) == 0, "what lies below does not run"


def test_the_largest_batch() -> None:
    assert [Work(examples, 8).batch for examples in (0, 1, 7, 8, 9)] == [1, 1, 7, 8, 8]
