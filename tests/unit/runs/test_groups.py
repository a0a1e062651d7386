"""Whom a result serves: groups and clients of real small runs, and their accuracy by hand."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bases
import numpy as np
import pytest
import torch
from datasets import Dataset

from hellora.client.evaluation import Evaluation
from hellora.core.algebra import components
from hellora.core.errors import InputError
from hellora.core.state import ServerState, owned
from hellora.core.types import Adapter
from hellora.experiments.config import check
from hellora.experiments.holding_out import hold_out
from hellora.experiments.prepare import prepare
from hellora.experiments.setup import Setup
from hellora.runs.groups import acts_like, expected_accuracy, served

Prepare = Callable[..., Setup]


@pytest.fixture
def prepared(tiny_bert: Path, sentences: Path) -> Prepare:
    """Six clients; tables of settings by section."""

    def prepare_with(**sections: dict[str, Any]) -> Setup:
        table = {
            "cohort": 3,
            "model": {"name": str(tiny_bert), "rank": 4},
            "data": {"name": str(sentences), "clients": 6, "alpha": 1.0, "min_examples": 4},
            "fleet": {"layers": [1, 2, 4]},
            "method": {"allocator": "random_layers"},
            "compute": {"threads": 1},
        }
        for name, settings in sections.items():
            table[name] = {**table.get(name, {}), **settings}  # type: ignore[dict-item]
        return prepare(check("small", table))

    return prepare_with


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Adapter]:
    """Every adapter that is evaluated from here on."""
    seen: list[Adapter] = []
    plain = Setup.evaluate_adapter

    def counting(self: Setup, adapter: Adapter, rows: Any, encoded: Any = None, asked: Any = None) -> Evaluation:
        seen.append(adapter)
        return plain(self, adapter, rows, encoded, asked)

    monkeypatch.setattr(Setup, "evaluate_adapter", counting)
    return seen


def acting_state(setup: Setup) -> ServerState:
    return replace(setup.initial_state(), adapter=bases.acting_adapter(setup.base))


def test_a_clients_accuracy_is_recall_by_its_own_classes() -> None:
    """Client 0 has 3 of class 0 and 1 of class 1; client 1 one of class 1, and two of class 2, which is not tested on;
    client 2 nothing but class 2."""
    data = Dataset.from_dict({"label": [0, 0, 0, 1, 1, 2, 2, 2]})
    parts = [np.array([0, 1, 2, 3]), np.array([4, 5, 6]), np.array([7])]
    setup: Any = SimpleNamespace(work=SimpleNamespace(data=data, parts=parts))
    found = expected_accuracy(setup, [0, 1, 2], {0: 0.8, 1: 0.4})
    assert found == {0: pytest.approx((3 * 0.8 + 0.4) / 4), 1: pytest.approx(0.4)}
    assert expected_accuracy(setup, [0, 1, 2], {}) == {}


def test_clients_of_whole_adapters_share_one_evaluation(prepared: Prepare, counted: list[Adapter]) -> None:
    setup = prepared()
    state = acting_state(setup)
    evaluation = setup.evaluate(state)
    found = served(setup, state, evaluation)
    assert len(counted) == 1
    assert [(g["layers"], g["rank"], g["clients"]) for g in found["groups"]] == [(1, 4, 2), (2, 4, 2), (4, 4, 2)]
    assert all(group["metrics"] == evaluation.metrics for group in found["groups"])
    assert list(found["clients"]) == ["0", "1", "2", "3", "4", "5"]
    assert found["worst_client"] == min(found["clients"].values()) < max(found["clients"].values())
    labels = np.array(setup.corpus.train["label"])[setup.work.parts[2]]
    by_example = [evaluation.per_class.recall[int(label)] for label in labels]
    assert found["clients"]["2"] == pytest.approx(np.mean(by_example))


def test_a_group_is_measured_by_the_ranks_it_receives(prepared: Prepare, counted: list[Adapter]) -> None:
    """Rank 4 is the whole global_pair, and not evaluated again; neither is rank 1 for its second budget."""
    setup = prepared(
        fleet={"layers": [4, 4, 2, 4, 4], "ranks": [1, 2, 1, 4, [4, 4, 1, 0]]}, method={"dispatcher": "truncate"}
    )
    state = acting_state(setup)
    evaluation = setup.evaluate(state)
    found = served(setup, state, evaluation)
    assert len(counted) == 4  # all; and ranks 1, 2, by layer
    by_rank = {(group["layers"], str(group["rank"])): group["metrics"] for group in found["groups"]}
    assert by_rank.keys() == {(2, "1"), (4, "1"), (4, "2"), (4, "4"), (4, "[4, 4, 1, 0]")}
    assert by_rank[4, "4"] == evaluation.metrics
    assert by_rank[2, "1"] == by_rank[4, "1"]
    for rank in (1, 2):
        pairs = {name: components(pair, torch.arange(rank)) for name, pair in state.adapter.pairs.items()}
        assert (
            by_rank[4, str(rank)]
            == setup.evaluate_adapter(replace(state.adapter, pairs=pairs), setup.corpus.test).metrics
        )
    losses = {metrics["loss"] for metrics in by_rank.values()}
    assert len(losses) == 4


def test_a_client_that_pruned_its_rank_is_measured_by_what_is_left(prepared: Prepare) -> None:
    """Client 0 said so in the last round, client 1 before that, and again: the last word counts."""
    method = {
        "allocator": "self_pruning",
        "local_training": ["hetlora"],
        "aggregator": "sparsity_weighted",
        "dispatcher": "truncate",
        "tail_penalty": 0.1,
    }
    setup = prepared(fleet={"layers": [], "ranks": [4]}, method=method)
    remembered = {"allocator/ranks": torch.tensor([[1, 3], [2, 2]])}
    reports = {client: {"hetlora/rank": torch.tensor(rank)} for client, rank in {0: 1, 1: 2}.items()}
    state = replace(acting_state(setup), strategies=remembered, reports=reports)
    found = served(setup, state, setup.evaluate(state))
    assert [(g["layers"], g["rank"], g["clients"]) for g in found["groups"]] == [(4, 1, 1), (4, 2, 2), (4, 4, 3)]
    pairs = {name: components(pair, torch.arange(1)) for name, pair in state.adapter.pairs.items()}
    alone = setup.evaluate_adapter(replace(state.adapter, pairs=pairs), setup.corpus.test)
    assert found["groups"][0]["metrics"] == alone.metrics != found["groups"][2]["metrics"]


def test_clients_that_leave_blocks_out_are_measured_on_the_whole_model(
    prepared: Prepare, counted: list[Adapter]
) -> None:
    setup = prepared(method={"dispatcher": "bypass"})
    state = acting_state(setup)
    evaluation = setup.evaluate(state)
    assert all(group["metrics"] == evaluation.metrics for group in served(setup, state, evaluation)["groups"])
    assert len(counted) == 1


def test_a_client_that_can_train_nothing_is_measured_by_the_global_adapter(
    prepared: Prepare, counted: list[Adapter]
) -> None:
    setup = prepared(fleet={"layers": [0, 4], "ranks": [0, 4]}, method={"dispatcher": "truncate"})
    state = acting_state(setup)
    found = served(setup, state, setup.evaluate(state))
    assert [(g["layers"], g["rank"], g["clients"]) for g in found["groups"]] == [(0, 0, 3), (4, 4, 3)]
    assert len(counted) == 1


@pytest.mark.parametrize("settings", [{"head": "local"}, {"shares": "A"}])
def test_a_client_with_its_own_model_is_measured_by_it(
    prepared: Prepare, counted: list[Adapter], settings: dict[str, str]
) -> None:
    setup = prepared(method=settings)
    state = acting_state(setup)
    lost = {f"head.{name}": tensor * 0 for name, tensor in state.adapter.head.items()}
    state = replace(state, kept={3: owned(lost, "private")})
    evaluation = setup.evaluate(state)
    before = len(counted)
    found = served(setup, state, evaluation)
    assert len(counted) == before == 6
    labels = np.array(setup.corpus.train["label"])
    assert found["clients"]["3"] == pytest.approx(np.mean(labels[setup.held_out[3]] == 0))  # of equal logits the first
    sizes = [len(rows) for rows in setup.held_out]
    mean = sum(found["clients"][str(i)] * size for i, size in enumerate(sizes)) / sum(sizes)
    assert evaluation.metrics["accuracy"] == pytest.approx(mean)
    counts = evaluation.per_class.counts.values()
    assert sum(own.examples for own in counts) == sum(own.said for own in counts) == sum(sizes)
    assert sum(own.right for own in counts) / sum(sizes) == pytest.approx(mean)
    members = [p.id for p in setup.federation.fleet if p.budget.layers == 2]
    expected = sum(found["clients"][str(i)] * sizes[i] for i in members) / sum(sizes[i] for i in members)
    assert found["groups"][1]["metrics"]["accuracy"] == pytest.approx(expected)


def test_adapters_act_alike_only_if_every_bit_is_equal(prepared: Prepare) -> None:
    setup = prepared()
    adapter = bases.acting_adapter(setup.base)
    copy = Adapter({n: replace(p, A=p.A.clone(), B=p.B.clone()) for n, p in adapter.pairs.items()}, dict(adapter.head))
    name = setup.base.spec.modules[0].name
    pair = adapter.pairs[name]
    assert acts_like(adapter, copy)
    assert acts_like(adapter, replace(copy, prototypes={2: adapter}))
    for other in (
        replace(copy, pairs={**copy.pairs, name: replace(pair, scale=pair.scale * 2)}),
        replace(copy, pairs={**copy.pairs, name: replace(pair, B=pair.B + 1e-3)}),
        replace(copy, pairs={**copy.pairs, name: components(pair, torch.arange(2))}),
        replace(copy, residual={name: pair}),
        replace(copy, head={n: t + 1 for n, t in copy.head.items()}),
    ):
        assert not acts_like(adapter, other)


# ----------------------------------------------------------------------------------------------------------- validation


def rows_in(parts: Sequence[Any]) -> list[list[int]]:
    return [part.tolist() for part in parts]


def test_what_clients_hold_out_is_halved_where_there_is_a_validation_split(prepared: Prepare) -> None:
    """The clients train on the same rows, whatever is asked of them later; no row is in both halves."""
    whole = prepared(data={"validation": 0.0})
    settings = whole.experiment.data
    parts = [np.arange(10 * i, 10 * i + 4 * i) for i in range(2, 7)]
    train, held = hold_out(parts, settings, seed=0)
    test_train, test = hold_out(parts, replace(settings, validation=0.1), seed=0)
    validation_train, validation = hold_out(parts, replace(settings, validation=0.1, evaluate_on="validation"), seed=0)
    assert rows_in(train) == rows_in(test_train) == rows_in(validation_train)
    for all_of_it, one, other in zip(held, test, validation, strict=True):
        assert sorted([*one, *other]) == all_of_it.tolist()
        assert 0 <= len(one) - len(other) <= 1
    with pytest.raises(InputError, match=r"data\.clients: 2 clients, with models of their own, have too few examples"):
        hold_out([np.array([1]), np.array([2])], settings, seed=0)


def test_tuning_and_test_runs_train_the_same_clients_on_the_same_rows(prepared: Prepare) -> None:
    test = prepared(data={"validation": 0.2})
    tuning = prepared(data={"validation": 0.2, "evaluate_on": "validation"})
    assert test.corpus.train["text"][:] == tuning.corpus.train["text"][:]
    assert rows_in(test.work.parts) == rows_in(tuning.work.parts)
    assert len(tuning.corpus.test) == 19
    assert len(tuning.corpus.train) == 96 - 19
