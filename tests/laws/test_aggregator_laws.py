"""What every aggregator in the folder must keep to, present and future."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.torch
import torch
from factories import (
    LargestTensor,
    aggregated,
    assert_is_a_strategy_file,
    bits,
    effective,
    random_adapter,
    round_of,
    strategies,
    task_for,
    tiny_spec,
    update_of,
    variants,
    who_promises,
)
from hypothesis import given, settings

import hellora.methods.aggregators
from hellora.core.algebra import trained_part
from hellora.core.exchange import ClientTask, ClientUpdate
from hellora.core.state import StrategyState
from hellora.core.types import Adapter, AdapterSpec, LoraPair, Mask, ModuleSpec
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.context import RoundContext
from hellora.methods.demands import (
    AVERAGES_COMPONENTS,
    BOUNDED_ADAPTER,
    LASTING_COMPONENTS,
    LONE_ADAPTER,
    MEAN_OF_EQUALS,
    PROTOTYPES_KEPT,
    RETURNS_THE_ONLY_ONE,
    TRAINS_ONLY_B,
    Demands,
)
from hellora.methods.sharing import answer_part, delta_norm
from hellora.methods.strategies import Aggregator, Answers

SPEC = tiny_spec()
FULL = np.ones((SPEC.num_layers, SPEC.max_rank), dtype=bool)
GLOBAL = random_adapter(SPEC, seed=1000)


@dataclass(frozen=True)
class Krumlike(Aggregator):
    """Takes the one client that moved least. It is here so that the laws are seen to fit such a rule."""

    @property
    def demands(self) -> Demands:
        return AVERAGES_COMPONENTS.also(promises={RETURNS_THE_ONLY_ONE})

    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        def moved(answer: tuple[ClientTask, ClientUpdate]) -> tuple[float, int]:
            task, update = answer
            return delta_norm(update.adapter, answer_part(task, context.spec)), update.client

        return ParticipantMean().aggregate(context, sorted(answers, key=moved)[:1])


@dataclass(frozen=True)
class Noisy(Aggregator):
    """The mean with noise on the head: it claims no optional law of means. It is here for the same reason."""

    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        adapter, state = ParticipantMean().aggregate(context, answers)
        if not answers:
            return adapter, state
        rng = torch.Generator().manual_seed(context.seed_for("noise"))
        head = {n: t + 0.1 * torch.randn(t.shape, generator=rng) for n, t in sorted(adapter.head.items())}
        return replace(adapter, head=head), state


AGGREGATORS = [*variants(hellora.methods.aggregators, Aggregator), Krumlike(), Noisy()]
every_aggregator = pytest.mark.parametrize("aggregator", AGGREGATORS, ids=repr)


def lasts(aggregator: Aggregator) -> bool:
    return LASTING_COMPONENTS in aggregator.demands.promises


def values_of(aggregator: Aggregator, client: int) -> Adapter:
    """A client's random values, as they may come back to this aggregator: where only B trains, A is the server's."""
    return as_it_trains(aggregator, random_adapter(SPEC, client))


def as_it_trains(aggregator: Aggregator, adapter: Adapter) -> Adapter:
    if TRAINS_ONLY_B not in aggregator.demands.needs:
        return adapter
    return replace(adapter, pairs={name: replace(pair, A=GLOBAL.pairs[name].A) for name, pair in adapter.pairs.items()})


def answers_with(aggregator: Aggregator, rows: Sequence[Mask], examples: Sequence[int]) -> Answers:
    """One answer per row, from clients 0, 1, …, each with its own random values."""
    tasks = [task_for(client, GLOBAL, row) for client, row in enumerate(rows)]
    return [(t, update_of(t, values_of(aggregator, t.client), SPEC, n)) for t, n in zip(tasks, examples, strict=True)]


def random_rows(seed: int, count: int) -> list[Mask]:
    return list(np.random.default_rng(seed).random((count, SPEC.num_layers, SPEC.max_rank)) < 0.5)


def scaled(adapter: Adapter, factor: float) -> Adapter:
    pairs = {name: LoraPair(factor * p.A, factor * p.B, p.scale) for name, p in adapter.pairs.items()}
    return Adapter(pairs, {name: factor * tensor for name, tensor in adapter.head.items()})


@every_aggregator
@given(seed=st.integers(0, 9999))
@settings(derandomize=True, deadline=None, database=None, max_examples=5)
def test_the_order_of_updates_is_irrelevant(aggregator: Aggregator, seed: int) -> None:
    """Clients 0 and 1 are huge and cancel each other, so in float64 the order of the terms decides what is left."""
    answers = list(answers_with(aggregator, [FULL, FULL, *random_rows(seed, 4)], examples=[9, 9, 41, 7, 100, 13]))
    huge = random_adapter(SPEC, 0)
    for client, factor in ((0, 2.0**90), (1, -(2.0**90))):
        task, update = answers[client]
        answers[client] = (task, replace(update, adapter=as_it_trains(aggregator, scaled(huge, factor))))
    expected = bits(aggregated(aggregator, GLOBAL, answers, SPEC, 0).tensors())
    for order in (range(5, -1, -1), np.random.default_rng(seed).permutation(6)):
        assert bits(aggregated(aggregator, GLOBAL, [answers[i] for i in order], SPEC, 0).tensors()) == expected


@who_promises(RETURNS_THE_ONLY_ONE, "aggregator", AGGREGATORS)
@pytest.mark.parametrize("examples", [1, 3, 49, 12_345])
def test_one_full_client_gives_its_adapter_back(aggregator: Aggregator, examples: int) -> None:
    """Bit by bit; where the global adapter is made anew, in what it does."""
    sent = values_of(aggregator, 0)
    got = aggregated(aggregator, GLOBAL, answers_with(aggregator, [FULL], [examples]), SPEC, 0)
    if lasts(aggregator):
        assert bits(got.tensors()) == bits(sent.tensors())
    assert bits(got.head) == bits(sent.head)
    for name, expected in effective(sent).items():
        assert np.linalg.norm(effective(got)[name] - expected) <= 1e-5 * np.linalg.norm(expected)


@every_aggregator
def test_what_nobody_trained_is_bit_identical(aggregator: Aggregator) -> None:
    """A layer always; a rank component where components stay themselves."""
    rows = random_rows(seed=7, count=3)
    for row in rows:
        row[1] = False  # a layer
        row[2, 3] = False  # a rank component
    result = aggregated(aggregator, GLOBAL, answers_with(aggregator, rows, [3, 5, 7]), SPEC, 0)
    for module in SPEC.modules:
        old, new = GLOBAL.pairs[module.name], result.pairs[module.name]
        untouched = ~np.logical_or.reduce(rows)[module.layer]
        if lasts(aggregator) or untouched.all():
            assert bits({0: new.A[untouched], 1: new.B[:, untouched]}) == bits(
                {0: old.A[untouched], 1: old.B[:, untouched]}
            )
    assert not any(SPEC.layer_of[name] == 1 for name in result.residual)


@who_promises(BOUNDED_ADAPTER, "aggregator", AGGREGATORS)
def test_an_adapter_that_is_bounded_stays_without_a_residual(aggregator: Aggregator) -> None:
    adapter = GLOBAL
    for seed in range(3):
        tasks = [task_for(client, adapter, row) for client, row in enumerate(random_rows(seed, count=3))]
        answers = [(t, update_of(t, values_of(aggregator, t.client), SPEC, 3 + t.client)) for t in tasks]
        adapter = aggregated(aggregator, adapter, answers, SPEC, 0)
        assert not adapter.residual
        assert {n: p.rank for n, p in adapter.pairs.items()} == dict.fromkeys(GLOBAL.pairs, SPEC.max_rank)


@every_aggregator
def test_who_keeps_prototypes_says_so(aggregator: Aggregator) -> None:
    """A lone adapter has none; where they are kept, every rank that was trained has one."""
    rows = [np.arange(SPEC.max_rank) < np.full((SPEC.num_layers, 1), rank) for rank in (1, 2, 4)]
    result = aggregated(aggregator, GLOBAL, answers_with_prototypes(aggregator, rows), SPEC, 0)
    promises = aggregator.demands.promises
    assert (LONE_ADAPTER in promises) != (PROTOTYPES_KEPT in promises)
    assert list(result.prototypes) == ([1, 2] if PROTOTYPES_KEPT in promises else [])


def answers_with_prototypes(aggregator: Aggregator, rows: Sequence[Mask]) -> Answers:
    """Of clients that were sent only what they train, as every aggregator can serve them."""
    answers = []
    for client, row in enumerate(rows):
        sent = Adapter(trained_part(GLOBAL, row, SPEC).pairs, GLOBAL.head)
        task = task_for(client, sent, row, cut=True)
        answers.append((task, update_of(task, values_of(aggregator, client), SPEC, 3 + client)))
    return answers


@every_aggregator
def test_state_goes_through_a_checkpoint(aggregator: Aggregator) -> None:
    answers = answers_with(aggregator, random_rows(seed=3, count=3), [3, 5, 7])
    context = round_of(GLOBAL, SPEC)
    adapter, state = aggregator.aggregate(context, answers)
    loaded = safetensors.torch.load(safetensors.torch.save(dict(state)))  # refuses tensors that share storage
    assert bits(loaded) == bits(state)
    later = replace(context, round=1, adapter=adapter)
    kept, resumed = (aggregator.aggregate(replace(later, state=found), answers) for found in (state, loaded))
    assert bits(kept[0].tensors()) == bits(resumed[0].tensors())
    assert bits(kept[1]) == bits(resumed[1])


@every_aggregator
def test_without_answers_nothing_changes(aggregator: Aggregator) -> None:
    assert bits(aggregated(aggregator, GLOBAL, [], SPEC, 0).tensors()) == bits(GLOBAL.tensors())


@every_aggregator
def test_inputs_are_not_mutated(aggregator: Aggregator) -> None:
    answers = answers_with(aggregator, random_rows(seed=3, count=3), [3, 5, 7])
    inputs = [GLOBAL.tensors(), *(update.adapter.tensors() for _, update in answers)]
    rows = [task.trained.copy() for task, _ in answers]
    before = [bits(tensors) for tensors in inputs]
    aggregated(aggregator, GLOBAL, answers, SPEC, 0)
    assert [bits(tensors) for tensors in inputs] == before
    assert all(np.array_equal(task.trained, row) for (task, _), row in zip(answers, rows, strict=True))


@who_promises(MEAN_OF_EQUALS, "aggregator", AGGREGATORS)
def test_equal_ranks_and_weights_reduce_to_fedavg(aggregator: Aggregator) -> None:
    """To the mean of every factor, or where factors are made anew of every product, as well as the rank can hold it."""
    result = aggregated(aggregator, GLOBAL, answers_with(aggregator, [FULL] * 4, [9] * 4), SPEC, 0)
    clients = [values_of(aggregator, client) for client in range(4)]
    anew = not {LASTING_COMPONENTS, PROTOTYPES_KEPT} & aggregator.demands.promises
    tensors = {f"head.{n}": t for n, t in result.head.items()} if anew else result.tensors()
    for name, got in tensors.items():
        mean = np.mean([client.tensors()[name].double().numpy() for client in clients], axis=0)
        np.testing.assert_allclose(got.numpy(), mean, rtol=1e-6, atol=1e-7)
    if anew:
        for name, got_product in effective(result).items():
            mean = np.mean([effective(client)[name] for client in clients], axis=0)
            unavoidable = np.linalg.norm(np.linalg.svd(mean, compute_uv=False)[SPEC.max_rank :])
            assert np.linalg.norm(got_product - mean) <= unavoidable + 1e-5 * np.linalg.norm(mean)


@every_aggregator
def test_results_are_contiguous_as_a_checkpoint_would_load_them(aggregator: Aggregator) -> None:
    pairs = {name: replace(pair, B=pair.B.T.contiguous().T) for name, pair in GLOBAL.pairs.items()}
    strided = replace(GLOBAL, pairs=pairs)
    answers = answers_with(aggregator, random_rows(seed=3, count=3), [3, 5, 7])
    result = aggregated(aggregator, strided, answers, SPEC, 0)
    assert all(tensor.is_contiguous() for tensor in result.tensors().values())


@every_aggregator
def test_no_dense_matrix_is_ever_built(aggregator: Aggregator) -> None:
    """No tensor reaches d_out × d_in, with three clients of rank 2 in a module of 60 × 50."""
    spec = AdapterSpec((ModuleSpec("m", 0, d_in=50, d_out=60),), ("layer",), max_rank=2, scale=2.0)
    global_pair = random_adapter(spec, 0)
    tasks = [task_for(client, global_pair, np.ones((1, 2), dtype=bool)) for client in range(3)]
    answers = [(task, update_of(task, random_adapter(spec, 1 + task.client), spec)) for task in tasks]
    with LargestTensor() as largest:
        aggregated(aggregator, global_pair, answers, spec, 0)
    assert 2 * 50 <= largest.elements < 50 * 60


def test_one_documented_frozen_dataclass_per_module() -> None:
    for module, cls in strategies(hellora.methods.aggregators, Aggregator):
        assert_is_a_strategy_file(module, cls)
