"""Aggregators that bound what one client can do: by hand, with an attacker, over unequal rows, against numpy."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from factories import aggregated, bits, random_adapter, task_for, tiny_spec, update_of
from hypothesis import given, settings
from hypothesis import strategies as st

from hellora.core.exchange import ClientUpdate
from hellora.core.types import Adapter, AdapterSpec, LoraPair, ModuleSpec
from hellora.methods.aggregators.clipped_mean import ClippedMean
from hellora.methods.aggregators.coordinate_median import CoordinateMedian, median
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.aggregators.trimmed_mean import TrimmedMean
from hellora.methods.demands import MEAN_OF_EQUALS, RETURNS_THE_ONLY_ONE
from hellora.methods.strategies import Aggregator, Answers

ONE = AdapterSpec((ModuleSpec("m", 0, d_in=1, d_out=1),), ("layer",), max_rank=2, scale=1.0)
SPEC = tiny_spec()
GLOBAL = random_adapter(SPEC, seed=1000)


def one(*values: float, head: float = 0.0) -> Adapter:
    """A module of 1 × 1 whose component q has A = values[q] and B = 10 values[q]."""
    pair = LoraPair(torch.tensor([[v] for v in values]), torch.tensor([list(values)]) * 10, 1.0)
    return Adapter({"m": pair}, {"bias": torch.tensor([head])})


def answers_of(
    rows: Sequence[Sequence[bool]], values: Sequence[Sequence[float]], heads: Sequence[float] | None = None
) -> Answers:
    """One answer per row; client i returns values[i] for the components that it trains, and has i + 1 examples."""
    start, answers = one(7.0, 7.0), []
    for client, (row, mine) in enumerate(zip(rows, values, strict=True)):
        task = task_for(client, start, np.array([row]))
        update = ClientUpdate(0, client, client + 1, one(*mine, head=heads[client] if heads else 0.0))
        answers.append((task, update))
    return answers


def values_in(adapter: Adapter) -> list[float]:
    A, B = adapter.pairs["m"].A.flatten().tolist(), adapter.pairs["m"].B.flatten().tolist()
    assert pytest.approx(B) == [10 * a for a in A]
    return A  # type: ignore[no-any-return]


BOTH, FIRST = (True, True), (True, False)


def test_median_by_hand() -> None:
    """Three clients train component 0, two of them component 1 too: an odd and an even count."""
    answers = answers_of([BOTH, BOTH, FIRST], [(1.0, 5.0), (9.0, 2.0), (3.0,)], heads=[1.0, 100.0, 2.0])
    result = aggregated(CoordinateMedian(), one(7.0, 7.0), answers, ONE, 0)
    assert values_in(result) == [3.0, 3.5]
    assert result.head["bias"].tolist() == [2.0]
    assert values_in(aggregated(CoordinateMedian(), one(7.0, 7.0), answers[2:], ONE, 0)) == [3.0, 7.0]


@pytest.mark.parametrize(("trim", "expected"), [(0.0, 26.0), (0.2, 5.0), (0.39, 5.0), (0.4, 4.0), (0.49, 4.0)])
def test_trimmed_mean_by_hand(trim: float, expected: float) -> None:
    """Five clients train component 0, two of them component 1: each component is trimmed by its own count."""
    rows = [BOTH, BOTH, FIRST, FIRST, FIRST]
    mine = [(3.0, 0.0), (113.0, 100.0), (2.0,), (8.0,), (4.0,)]
    answers = answers_of(rows, mine, heads=[values[0] for values in mine])
    result = aggregated(TrimmedMean(trim), one(7.0, 7.0), answers, ONE, 0)
    assert values_in(result) == pytest.approx([expected, 50.0])
    assert result.head["bias"].item() == pytest.approx(expected)


def test_what_is_trimmed_is_rounded_down_of_the_number_as_written() -> None:
    values = torch.arange(100.0)[:, None]
    values[28] = 1000.0  # after sorting it is the largest
    assert TrimmedMean(0.29).mean(values).item() == pytest.approx(values.sort(0).values[29:71].mean().item())


def test_clipped_mean_by_hand() -> None:
    """Client 0 moves A by 3 and the head by 4: a norm of 5, clipped to 2.5. Client 1 moves the head by 1."""
    start = one(0.0, 0.0)
    task = task_for(0, start, np.array([BOTH]))
    moved = replace(start, pairs={"m": LoraPair(torch.tensor([[3.0], [0.0]]), torch.zeros(1, 2), 1.0)})
    moved = replace(moved, head={"bias": torch.tensor([4.0])})
    other = replace(start, head={"bias": torch.tensor([1.0])})
    answers = [(task, ClientUpdate(0, 0, 1, moved)), (replace(task, client=1), ClientUpdate(0, 1, 3, other))]
    result = aggregated(ClippedMean(max_norm=2.5, weighting="samples"), start, answers, ONE, 0)
    assert result.pairs["m"].A.flatten().tolist() == [0.375, 0.0]  # 1.5 of one example in four
    assert result.head["bias"].tolist() == [(2.0 + 3 * 1.0) / 4]
    uniform = aggregated(ClippedMean(max_norm=2.5), start, answers, ONE, 0)
    assert uniform.head["bias"].tolist() == [1.5]


def test_updates_within_the_norm_are_averaged_as_ever() -> None:
    rng = np.random.default_rng(0)
    rows = rng.random((4, SPEC.num_layers, SPEC.max_rank)) < 0.5
    tasks = [task_for(client, GLOBAL, row) for client, row in enumerate(rows)]
    answers = [(task, update_of(task, random_adapter(SPEC, task.client), SPEC, 3)) for task in tasks]
    assert bits(aggregated(ClippedMean(1e3), GLOBAL, answers, SPEC, 0).tensors()) == bits(
        aggregated(ParticipantMean(), GLOBAL, answers, SPEC, 0).tensors()
    )


FULL = np.ones((SPEC.num_layers, SPEC.max_rank), dtype=bool)


def full_answers(examples: Sequence[int]) -> Answers:
    """Clients 0, 1, … train everything."""
    tasks = [task_for(client, GLOBAL, FULL) for client in range(len(examples))]
    return [(t, update_of(t, random_adapter(SPEC, t.client), SPEC, n)) for t, n in zip(tasks, examples, strict=True)]


@pytest.mark.parametrize("examples", [1, 3, 49, 12_345])
def test_where_nothing_is_clipped_one_full_client_gives_its_adapter_back(examples: int) -> None:
    """It claims this law for no norm, for there is always a delta that is longer."""
    assert not ClippedMean().demands.promises & {MEAN_OF_EQUALS, RETURNS_THE_ONLY_ONE}
    got = aggregated(ClippedMean(2.0**100), GLOBAL, full_answers([examples]), SPEC, 0)
    assert bits(got.tensors()) == bits(random_adapter(SPEC, 0).tensors())


@pytest.mark.parametrize(
    "aggregator", [ClippedMean(2.0**100), ClippedMean(2.0**100, "uniform"), TrimmedMean()], ids=repr
)
def test_equal_clients_of_which_none_is_clipped_or_trimmed_give_their_mean(aggregator: Aggregator) -> None:
    """A fifth of four clients is none."""
    assert MEAN_OF_EQUALS not in aggregator.demands.promises
    result = aggregated(aggregator, GLOBAL, full_answers([9] * 4), SPEC, 0)
    for name, got in result.tensors().items():
        sent = [random_adapter(SPEC, client).tensors()[name].double().numpy() for client in range(4)]
        np.testing.assert_allclose(got.numpy(), np.mean(sent, axis=0), rtol=1e-6, atol=1e-7)


@given(seed=st.integers(0, 9999))
@settings(deadline=None, max_examples=5, derandomize=True, database=None)
def test_a_huge_norm_is_the_participant_mean(seed: int) -> None:
    """Bit for bit, of updates that a smaller norm would clip."""
    rows = np.random.default_rng(seed).random((4, SPEC.num_layers, SPEC.max_rank)) < 0.5
    tasks = [task_for(client, GLOBAL, row) for client, row in enumerate(rows)]
    answers = [(task, update_of(task, random_adapter(SPEC, task.client), SPEC, 3 + task.client)) for task in tasks]
    mean = bits(aggregated(ParticipantMean(), GLOBAL, answers, SPEC, 0).tensors())
    assert bits(aggregated(ClippedMean(2.0**100, "samples"), GLOBAL, answers, SPEC, 0).tensors()) == mean
    assert bits(aggregated(ClippedMean(1.0), GLOBAL, answers, SPEC, 0).tensors()) != mean


@pytest.mark.parametrize("head", ["frozen", "local"])
def test_a_head_that_is_not_aggregated_is_not_clipped(head: str) -> None:
    """The server puts its own head in its place; what the client was sent may be another one."""
    row = np.ones((SPEC.num_layers, SPEC.max_rank), dtype=bool)
    own = replace(GLOBAL, head={name: value + 50 for name, value in GLOBAL.head.items()})
    task = replace(task_for(0, own, row), head=head)
    update = replace(update_of(task, random_adapter(SPEC, 1), SPEC), adapter=random_adapter(SPEC, 1))
    update = replace(update, adapter=replace(update.adapter, head=GLOBAL.head))
    result = aggregated(ClippedMean(1e-3), GLOBAL, [(task, update)], SPEC, 0)
    assert bits(result.head) == bits(GLOBAL.head)
    pairs = {name: np.abs((result.pairs[name].A - pair.A).numpy()).max() for name, pair in GLOBAL.pairs.items()}
    assert max(pairs.values()) < 2e-3


@pytest.mark.parametrize("aggregator", [CoordinateMedian(), TrimmedMean(0.2), ClippedMean(1.0)], ids=repr)
@pytest.mark.parametrize("attack", [1e30, -1e30, 1e6])
def test_one_attacker_among_five(aggregator: Aggregator, attack: float) -> None:
    """Median and trimmed mean stay within what the honest sent; a clipped mean moves by max_norm at most."""
    full = np.ones((SPEC.num_layers, SPEC.max_rank), dtype=bool)
    tasks = [task_for(client, GLOBAL, full) for client in range(5)]
    honest = [random_adapter(SPEC, client) for client in range(4)]
    evil = random_adapter(SPEC, 4)
    evil = Adapter(
        {name: LoraPair(pair.A * attack, pair.B * attack, pair.scale) for name, pair in evil.pairs.items()},
        {name: value * attack for name, value in evil.head.items()},
    )
    answers = [(t, update_of(t, a, SPEC)) for t, a in zip(tasks, [*honest, evil], strict=True)]
    result = aggregated(aggregator, GLOBAL, answers, SPEC, 0).tensors()
    for name, got in result.items():
        sent = torch.stack([a.tensors()[name] for a in honest])
        if isinstance(aggregator, ClippedMean):
            assert (got - GLOBAL.tensors()[name]).norm() <= 1.0 + 1e-5
        else:
            assert (got >= sent.min(0).values).all(), name
            assert (got <= sent.max(0).values).all(), name
    plain = aggregated(ParticipantMean(), GLOBAL, answers, SPEC, 0).tensors()
    assert max(float(tensor.abs().max()) for tensor in plain.values()) > 1e4, "which a mean does not withstand"


def reference(answers: Answers, combine: Callable[[list[float]], float]) -> dict[str, npt.NDArray[np.float64]]:
    """Number by number, from each client's whole adapter as it was before its update was cut out."""
    whole = {u.client: random_adapter(SPEC, u.client).tensors() for _, u in answers}
    result = {name: tensor.double().numpy().copy() for name, tensor in GLOBAL.tensors().items()}
    for name, values in result.items():
        for place in np.ndindex(values.shape):
            held = []
            for task, update in answers:
                component = place[0] if name.endswith("lora_A") else place[-1]
                if name.startswith("head.") or task.trained[int(name.split(".")[1]), component]:
                    held.append(float(whole[update.client][name][place]))
            if held:
                values[place] = combine(held)
    return result


def trimmed(held: list[float]) -> float:
    cut = len(held) // 4
    return float(np.mean(sorted(held)[cut : len(held) - cut]))


@given(seed=st.integers(0, 9999))
@settings(deadline=None, max_examples=5, derandomize=True, database=None)
def test_unequal_rows_against_the_reference(seed: int) -> None:
    """Every component has its own clients, none to seven."""
    rows = np.random.default_rng(seed).random((7, SPEC.num_layers, SPEC.max_rank)) < 0.5
    rows[:, 1, 2] = False
    tasks = [task_for(client, GLOBAL, row) for client, row in enumerate(rows)]
    answers = [(task, update_of(task, random_adapter(SPEC, task.client), SPEC, 1 + task.client)) for task in tasks]
    for aggregator, combine in (
        (CoordinateMedian(), lambda held: float(np.median(held))),
        (TrimmedMean(0.25), trimmed),
    ):
        result = aggregated(aggregator, GLOBAL, answers, SPEC, 0).tensors()
        expected = reference(answers, combine)
        assert result.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(result[name].numpy(), values, rtol=1e-6, atol=1e-7, err_msg=name)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=9))
@settings(deadline=None, max_examples=50, derandomize=True, database=None)
def test_the_median_is_the_one_of_numpy(values: list[float]) -> None:
    assert median(torch.tensor(values, dtype=torch.float64)[:, None]).item() == pytest.approx(np.median(values))


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match=r"trim must be in \[0, 0.5\), not 0.5"):
        TrimmedMean(0.5)
    with pytest.raises(ValueError, match="max_norm must be greater than 0, not 0"):
        ClippedMean(max_norm=0)
