"""Aggregation error and energy spectrum against dense matrices, idle rounds by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import aggregated, random_adapter, task_for, tiny_spec, update_of

from hellora.core.algebra import delta_weight
from hellora.core.state import Diagnostics
from hellora.core.types import Adapter, AdapterSpec, Allocation, LoraPair, ModuleSpec
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.strategies import Answers
from hellora.server import diagnostics
from hellora.server.diagnostics import by_turns, diagnose, idle_rounds, squared_norm

SPEC = tiny_spec()
GLOBAL = random_adapter(SPEC, seed=1000)


def aggregation_error(answers: Answers) -> float | None:
    return diagnose(answers, GLOBAL, SPEC, 0).aggregation_error


def energy(adapter: Adapter) -> tuple[float, ...]:
    return diagnose([], adapter, SPEC, 0).energy


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
    assert aggregation_error(answers) == pytest.approx((error / exact) ** 0.5, rel=1e-5)


def test_one_client_or_one_shared_factor_makes_no_error() -> None:
    assert aggregation_error(answers_of([[4, 2, 1]], [7])) == pytest.approx(0, abs=1e-7)
    answers = []
    for task, update in answers_of([[4, 4, 4]] * 3, [1, 2, 3]):
        pairs = {n: replace(p, A=GLOBAL.pairs[n].A) for n, p in update.adapter.pairs.items()}
        answers.append((task, replace(update, adapter=Adapter(pairs, update.adapter.head))))
    assert aggregation_error(answers) == pytest.approx(0, abs=1e-7)


def test_no_error_to_speak_of_where_nobody_trained_or_nothing_moved() -> None:
    assert aggregation_error([]) is None
    still = [
        (t, replace(u, adapter=Adapter({n: replace(p, B=0 * p.B) for n, p in u.adapter.pairs.items()})))
        for t, u in answers_of([[4, 4, 4]] * 2, [1, 1])
    ]
    assert aggregation_error(still) is None


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
    np.testing.assert_allclose(energy(adapter), expected / total, rtol=1e-5)


def test_energy_of_nothing_is_0() -> None:
    blank = Adapter({n: replace(p, B=0 * p.B) for n, p in GLOBAL.pairs.items()})
    assert energy(blank) == (0.0,) * SPEC.max_rank


@pytest.mark.parametrize("clients", [1, 3, 40])
def test_a_norm_is_the_same_in_products_of_ranks_and_dense(clients: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 · 4 components cost less in products of ranks, 40 · 4 in blocks of the dense matrix; here 2 rows are one."""
    monkeypatch.setattr(diagnostics, "ROWS", 2)
    module = ModuleSpec("linear", 0, 30, 25)
    draw = torch.Generator().manual_seed(clients)
    terms = [
        (0.1 * (k + 1), LoraPair(torch.randn(4, 30, generator=draw), torch.randn(25, 4, generator=draw), 0.5))
        for k in range(clients)
    ]
    exact = sum((weight * delta_weight(pair).double() for weight, pair in terms), torch.zeros(25, 30).double())
    assert squared_norm(terms, module) == pytest.approx(float(exact.square().sum()), rel=1e-5)


def test_modules_take_turns_by_layer_in_an_order_of_the_seed() -> None:
    modules = [ModuleSpec(f"{layer}.{name}", layer, 4, 4) for layer in range(6) for name in ("query", "key", "value")]
    spec = AdapterSpec(tuple(modules), tuple("abcdef"), 2, 1.0)
    order = by_turns(spec, seed=3)
    assert [sorted(module.layer for module in order[i : i + 6]) for i in (0, 6, 12)] == [list(range(6))] * 3
    assert len(set(order)) == 18
    assert order == by_turns(spec, seed=3) != by_turns(spec, seed=4)
    assert len({module.name.partition(".")[2] for module in order[:6]}) > 1, "not always the first module of a layer"


def test_what_would_cost_too_much_is_measured_in_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pay 6 modules of two clients of rank 4, and of the adapter, are too many; for some pay some are not."""
    answers = answers_of([[4, 4, 4]] * 2, [1, 2])
    whole = diagnose(answers, GLOBAL, SPEC, 5)
    modules = len(SPEC.modules)
    assert whole.error_modules == whole.energy_modules == (modules, modules)
    monkeypatch.setattr(diagnostics, "ALWAYS", 0)
    monkeypatch.setattr(diagnostics, "PER_NUMBER", 0)
    assert sample(answers) == ((1, modules), (1, modules)), "one at least"
    monkeypatch.setattr(diagnostics, "PER_NUMBER", 4)
    error, spectrum = sample(answers)
    assert 1 < error[0] < modules
    assert 1 < spectrum[0] < modules
    some = diagnose(answers, GLOBAL, SPEC, 5)
    assert some == diagnose(answers, GLOBAL, SPEC, 5), "the same on every call"
    only = by_turns(SPEC, 5)[: error[0]]
    few = replace(SPEC, modules=tuple(m for m in SPEC.modules if m in only))
    monkeypatch.setattr(diagnostics, "ALWAYS", 2**28)
    assert diagnose(answers, GLOBAL, few, 5).aggregation_error == pytest.approx(some.aggregation_error, rel=1e-9)
    assert some.aggregation_error != pytest.approx(whole.aggregation_error, rel=1e-3)


def sample(answers: Answers) -> tuple[tuple[int, int], tuple[int, int]]:
    found: Diagnostics = diagnose(answers, GLOBAL, SPEC, 5)
    return found.error_modules, found.energy_modules


def test_idle_rounds_count_layers_that_no_counted_client_trained() -> None:
    mask = np.zeros((3, 4, 2), dtype=bool)
    mask[0, 0, 0] = mask[1, 1] = mask[2, 2] = True
    allocation = Allocation((4, 7, 9), mask)
    assert idle_rounds(allocation, [4, 7], None) == [0, 0, 1, 1]
    assert idle_rounds(allocation, [9], [0, 0, 1, 1]) == [1, 1, 0, 2]
    assert idle_rounds(allocation, [], [5, 0, 0, 2]) == [6, 1, 1, 3]
