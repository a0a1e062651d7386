"""What every aggregator in the folder must keep to, present and future."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from factories import (
    assert_is_a_strategy_file,
    bits,
    random_adapter,
    strategies,
    task_for,
    tiny_spec,
    update_of,
    variants,
)

import hellora.aggregators
from hellora.aggregators.sparsity_weighted import SparsityWeighted
from hellora.protocols import Aggregator, Answers
from hellora.types import Adapter, LoraPair, Mask

SPEC = tiny_spec()
FULL = np.ones((SPEC.num_layers, SPEC.max_rank), dtype=bool)
GLOBAL = random_adapter(SPEC, seed=1000)
AGGREGATORS = list(variants(hellora.aggregators, Aggregator))
BY_EXAMPLES = [a for a in AGGREGATORS if not isinstance(a, SparsityWeighted)]  # that one weighs by what clients hold
every_aggregator = pytest.mark.parametrize("aggregator", AGGREGATORS, ids=repr)


def answers_with(rows: Sequence[Mask], examples: Sequence[int]) -> Answers:
    """One answer per row, from clients 0, 1, …, each with its own random values."""
    tasks = [task_for(client, GLOBAL, row) for client, row in enumerate(rows)]
    return [(t, update_of(t, random_adapter(SPEC, t.client), SPEC, n)) for t, n in zip(tasks, examples, strict=True)]


def random_rows(seed: int, count: int) -> list[Mask]:
    return list(np.random.default_rng(seed).random((count, SPEC.num_layers, SPEC.max_rank)) < 0.5)


def scaled(adapter: Adapter, factor: float) -> Adapter:
    pairs = {name: LoraPair(factor * p.A, factor * p.B, p.scale) for name, p in adapter.pairs.items()}
    return Adapter(pairs, {name: factor * tensor for name, tensor in adapter.head.items()})


@every_aggregator
@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_updates_is_irrelevant(aggregator: Aggregator, seed: int) -> None:
    """Clients 0 and 1 are huge and cancel each other, so in float64 the order of the terms decides what is left."""
    answers = list(answers_with([FULL, FULL, *random_rows(seed, 4)], examples=[9, 9, 41, 7, 100, 13]))
    huge = random_adapter(SPEC, 0)
    for client, factor in ((0, 2.0**90), (1, -(2.0**90))):
        task, update = answers[client]
        answers[client] = (task, replace(update, adapter=scaled(huge, factor)))
    expected = bits(aggregator.aggregate(GLOBAL, answers, SPEC, 0).tensors())
    for order in (range(5, -1, -1), np.random.default_rng(seed).permutation(6)):
        assert bits(aggregator.aggregate(GLOBAL, [answers[i] for i in order], SPEC, 0).tensors()) == expected


@every_aggregator
@pytest.mark.parametrize("examples", [1, 3, 49, 12_345])
def test_one_full_client_gives_its_adapter_back(aggregator: Aggregator, examples: int) -> None:
    answers = answers_with([FULL], [examples])
    assert bits(aggregator.aggregate(GLOBAL, answers, SPEC, 0).tensors()) == bits(random_adapter(SPEC, 0).tensors())


@every_aggregator
def test_what_nobody_trained_is_bit_identical(aggregator: Aggregator) -> None:
    rows = random_rows(seed=7, count=3)
    for row in rows:
        row[1] = False  # a layer
        row[2, 3] = False  # a rank component
    result = aggregator.aggregate(GLOBAL, answers_with(rows, [3, 5, 7]), SPEC, 0)
    for module in SPEC.modules:
        old, new = GLOBAL.pairs[module.name], result.pairs[module.name]
        untouched = ~np.logical_or.reduce(rows)[module.layer]
        assert bits({0: new.A[untouched], 1: new.B[:, untouched]}) == bits(
            {0: old.A[untouched], 1: old.B[:, untouched]}
        )


@every_aggregator
def test_without_answers_nothing_changes(aggregator: Aggregator) -> None:
    assert bits(aggregator.aggregate(GLOBAL, [], SPEC, 0).tensors()) == bits(GLOBAL.tensors())


@every_aggregator
def test_inputs_are_not_mutated(aggregator: Aggregator) -> None:
    answers = answers_with(random_rows(seed=3, count=3), [3, 5, 7])
    inputs = [GLOBAL.tensors(), *(update.adapter.tensors() for _, update in answers)]
    rows = [task.trained.copy() for task, _ in answers]
    before = [bits(tensors) for tensors in inputs]
    aggregator.aggregate(GLOBAL, answers, SPEC, 0)
    assert [bits(tensors) for tensors in inputs] == before
    assert all(np.array_equal(task.trained, row) for (task, _), row in zip(answers, rows, strict=True))


@pytest.mark.parametrize("aggregator", BY_EXAMPLES, ids=repr)
def test_equal_ranks_and_weights_reduce_to_fedavg(aggregator: Aggregator) -> None:
    answers = answers_with([FULL] * 4, [9] * 4)
    result = aggregator.aggregate(GLOBAL, answers, SPEC, 0).tensors()
    for name, got in result.items():
        mean = np.mean([random_adapter(SPEC, client).tensors()[name].double().numpy() for client in range(4)], axis=0)
        np.testing.assert_allclose(got.numpy(), mean, rtol=1e-6, atol=1e-7)


@every_aggregator
def test_results_are_contiguous_as_a_checkpoint_would_load_them(aggregator: Aggregator) -> None:
    pairs = {name: replace(pair, B=pair.B.T.contiguous().T) for name, pair in GLOBAL.pairs.items()}
    strided = replace(GLOBAL, pairs=pairs)
    result = aggregator.aggregate(strided, answers_with(random_rows(seed=3, count=3), [3, 5, 7]), SPEC, 0)
    assert all(tensor.is_contiguous() for tensor in result.tensors().values())


def test_one_documented_frozen_dataclass_per_module() -> None:
    for module, cls in strategies(hellora.aggregators, Aggregator):
        assert_is_a_strategy_file(module, cls)
