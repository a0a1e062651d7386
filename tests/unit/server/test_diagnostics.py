"""Aggregation error and energy spectrum against dense matrices, idle rounds by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import aggregated, random_adapter, task_for, tiny_spec, update_of

from hellora.core.algebra import delta_weight
from hellora.core.types import Adapter, Allocation, LoraPair
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.strategies import Answers
from hellora.server.diagnostics import aggregation_error, energy, idle_rounds

SPEC = tiny_spec()
GLOBAL = random_adapter(SPEC, seed=1000)


def answers_of(ranks: list[list[int]], sizes: list[int], seed: int = 0) -> Answers:
    """Client i trains the first ranks[i][layer] components of each layer."""
    tasks = [
        task_for(client, GLOBAL, np.arange(SPEC.max_rank) < np.array(rows)[:, None])
        for client, rows in enumerate(ranks)
    ]
    return [
        (task, update_of(task, random_adapter(SPEC, seed + task.client), SPEC, size))
        for task, size in zip(tasks, sizes, strict=True)
    ]


def test_aggregation_error_against_dense_matrices() -> None:
    answers = answers_of([[4, 0, 2], [1, 0, 4], [3, 0, 0]], [3, 5, 9])
    blank = Adapter({n: LoraPair(0 * p.A, 0 * p.B, p.scale) for n, p in GLOBAL.pairs.items()}, GLOBAL.head)
    averaged = aggregated(ParticipantMean(), blank, answers, SPEC, 0)
    error = exact = 0.0
    for module in SPEC.modules:
        if module.layer == 1:
            continue
        parts = [(u.weight, u.adapter.pairs[module.name]) for _, u in answers if module.name in u.adapter.pairs]
        mean = sum(w * delta_weight(pair).double() for w, pair in parts) / sum(w for w, _ in parts)
        exact += float(mean.square().sum())
        error += float((mean - delta_weight(averaged.pairs[module.name]).double()).square().sum())
    assert aggregation_error(answers, SPEC) == pytest.approx((error / exact) ** 0.5, rel=1e-5)


def test_one_client_or_one_shared_factor_makes_no_error() -> None:
    assert aggregation_error(answers_of([[4, 2, 1]], [7]), SPEC) == pytest.approx(0, abs=1e-7)
    answers = []
    for task, update in answers_of([[4, 4, 4]] * 3, [1, 2, 3]):
        pairs = {n: replace(p, A=GLOBAL.pairs[n].A) for n, p in update.adapter.pairs.items()}
        answers.append((task, replace(update, adapter=Adapter(pairs, update.adapter.head))))
    assert aggregation_error(answers, SPEC) == pytest.approx(0, abs=1e-7)


def test_no_error_to_speak_of_where_nobody_trained_or_nothing_moved() -> None:
    assert aggregation_error([], SPEC) is None
    still = [
        (t, replace(u, adapter=Adapter({n: replace(p, B=0 * p.B) for n, p in u.adapter.pairs.items()})))
        for t, u in answers_of([[4, 4, 4]] * 2, [1, 1])
    ]
    assert aggregation_error(still, SPEC) is None


@pytest.mark.parametrize("residual", [False, True])
def test_energy_against_dense_singular_values(residual: bool) -> None:
    adapter = GLOBAL
    if residual:
        adapter = replace(GLOBAL, residual={"block.1.query": LoraPair(torch.ones(2, 5), torch.rand(6, 2), 1.0)})
    expected, total = np.zeros(SPEC.max_rank), 0.0
    for name, pair in adapter.pairs.items():
        dense = delta_weight(pair).double()
        if name in adapter.residual:
            dense = dense + delta_weight(adapter.residual[name]).double()
        squares = torch.linalg.svdvals(dense).square().numpy()
        expected[: len(squares)] += squares[: SPEC.max_rank]
        total += squares.sum()
    np.testing.assert_allclose(energy(adapter, SPEC), expected / total, rtol=1e-5)


def test_energy_of_nothing_is_0() -> None:
    blank = Adapter({n: replace(p, B=0 * p.B) for n, p in GLOBAL.pairs.items()})
    assert energy(blank, SPEC) == [0.0] * SPEC.max_rank


def test_idle_rounds_count_layers_that_no_counted_client_trained() -> None:
    mask = np.zeros((3, 4, 2), dtype=bool)
    mask[0, 0, 0] = mask[1, 1] = mask[2, 2] = True
    allocation = Allocation((4, 7, 9), mask)
    assert idle_rounds(allocation, [4, 7], None) == [0, 0, 1, 1]
    assert idle_rounds(allocation, [9], [0, 0, 1, 1]) == [1, 1, 0, 2]
    assert idle_rounds(allocation, [], [5, 0, 0, 2]) == [6, 1, 1, 3]
