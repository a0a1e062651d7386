"""HeLoRA-KD, step 1: the mean within each rank, against a slow reference in float64; the weights of the teachers."""

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from factories import aggregated, bits, dispatched, random_adapter, task_for, tiny_spec, update_of
from hypothesis import given, settings

from hellora.core.algebra import prototype_of, prototype_row, prototypes_of
from hellora.core.types import Adapter, Mask
from hellora.methods.aggregators.mutual_distillation import MutualDistillation
from hellora.methods.dispatchers.prototype import Prototype
from hellora.methods.strategies import Answers

SPEC = tiny_spec()
BANK = random_adapter(SPEC, seed=1000)


def row_of(*counts: int) -> Mask:
    """The first components of each layer, as many as said."""
    return np.arange(SPEC.max_rank) < np.array(counts)[:, None]


def answers_to(adapter: Adapter, rows: list[Mask], examples: list[int]) -> Answers:
    """Client k is sent its prototype, and answers with the first components of random adapter k."""
    answers = []
    for client, (row, count) in enumerate(zip(rows, examples, strict=True)):
        task = task_for(client, dispatched(Prototype(), adapter, row, SPEC), row, cut=True)
        own = prototype_row(row)
        values = prototype_of(random_adapter(SPEC, client), own.shape[1], SPEC)
        part = update_of(replace(task, trained=own), values, SPEC, count)
        answers.append((task, part))
    return answers


def values_of(adapter: Adapter) -> dict[str, npt.NDArray[np.float64]]:
    """Every tensor in float64, B with its rank first."""
    return {
        name: (tensor.T if name.endswith("lora_B") else tensor).double().numpy()
        for name, tensor in adapter.tensors().items()
    }


def reference(old: Adapter, rows: list[Mask], examples: list[int], rank: int) -> dict[str, npt.NDArray[np.float64]]:
    """Row by row of every tensor of a prototype: the mean of the clients of its rank that trained the row."""
    result = values_of(old)
    whole = {k: values_of(random_adapter(SPEC, k)) for k in range(len(rows))}
    members = [k for k, row in enumerate(rows) if row.sum(axis=1).max() == rank]
    layer_of = SPEC.layer_of
    for name, rows_of_tensor in result.items():
        module = name.rpartition(".lora_")[0]
        for q in range(len(rows_of_tensor)):
            who = [k for k in members if not module or rows[k][layer_of[module]].sum() > q]
            total = sum(examples[k] for k in who)
            if total:
                rows_of_tensor[q] = sum(examples[k] * whole[k][name][q] for k in who) / total
    return result


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Mask], list[int]]:
    counts = st.tuples(*[st.integers(0, SPEC.max_rank)] * SPEC.num_layers).filter(any)
    rows = [row_of(*found) for found in draw(st.lists(counts, min_size=1, max_size=5))]
    return rows, draw(st.lists(st.integers(1, 50), min_size=len(rows), max_size=len(rows)))


@settings(derandomize=True, deadline=None, database=None, max_examples=40)
@given(situations(), st.sets(st.integers(1, SPEC.max_rank - 1)))
def test_the_mean_is_within_the_rank(situation: tuple[list[Mask], list[int]], known: set[int]) -> None:
    rows, examples = situation
    prototypes = {rank: prototype_of(random_adapter(SPEC, 2000 + rank), rank, SPEC) for rank in sorted(known)}
    adapter = replace(BANK, prototypes=prototypes)
    result = aggregated(MutualDistillation(), adapter, answers_to(adapter, rows, examples), SPEC, 0)
    seen = {int(row.sum(axis=1).max()) for row in rows}
    assert list(result.prototypes) == sorted((known | seen) - {SPEC.max_rank}), (
        "a rank has one once a client trained it"
    )
    for rank, got in prototypes_of(result, SPEC).items():
        old = prototype_of(adapter, rank, SPEC)
        if rank not in seen:
            assert bits(got.tensors()) == bits(old.tensors())
        expected = reference(old, rows, examples, rank)
        assert expected.keys() == got.tensors().keys()
        for name, value in values_of(got).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-7)


def test_two_clients_of_a_rank_by_hand() -> None:
    """Rank 2 is trained by clients 0 and 1 with 1 and 3 examples, and by nobody else; the global adapter by client 2
    alone.
    """
    rows = [row_of(2, 2, 2), row_of(2, 2, 2), row_of(4, 4, 4)]
    result = aggregated(MutualDistillation(), BANK, answers_to(BANK, rows, [1, 3, 9]), SPEC, 0)
    zero, one, two = (random_adapter(SPEC, client) for client in range(3))
    for name, pair in result.prototypes[2].pairs.items():
        mean = (zero.pairs[name].A[:2].double() + 3 * one.pairs[name].A[:2].double()) / 4
        np.testing.assert_allclose(pair.A.numpy(), mean.numpy(), rtol=1e-6)
        assert pair.scale == SPEC.scale
        assert bits({0: result.pairs[name].B}) == bits({0: two.pairs[name].B})
    assert bits(result.head) == bits(two.head)
    assert set(result.prototypes) == {2}


# --- teachers


ANSWERS = answers_to(BANK, [row_of(1, 0, 1), row_of(1, 1, 1), row_of(0, 4, 2)], [30, 12, 7])


@pytest.mark.parametrize(
    ("ensemble", "weights"),
    [
        ("uniform", {1: 1.0, 2: 1.0, 4: 1.0}),
        ("rank", {1: 1.0, 2: 2.0, 4: 4.0}),
        ("samples", {1: 42.0, 2: 1.0, 4: 7.0}),  # nobody trained rank 2
    ],
)
def test_weights_of_the_teachers(ensemble: Any, weights: dict[int, float]) -> None:
    assert MutualDistillation(ensemble=ensemble).teachers((1, 2, 4), ANSWERS) == weights


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.0},
        {"kd_weight": 0.0},
        {"ce_weight": -0.1},
        {"kd_steps": 0},
        {"kd_batch_size": 0},
        {"kd_lr": 0.0},
        {"top_k": 0},
        {"ensemble": "best"},
    ],
)
def test_settings_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        MutualDistillation(**change)
