"""Heads that are solved in closed form, in whole runs: the same bits however the data are dealt out, and wherever."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import bases
import numpy as np
import pytest
import torch
from factories import bits
from fake_grid import FakeGrid
from federation_site import Silent, tensors

from hellora.client.features import features_of
from hellora.core.algebra import new_adapter
from hellora.core.errors import InputError, RunError
from hellora.core.state import ServerState
from hellora.deployment.flower_setup import SimulatedOnFlower
from hellora.experiments.config import check
from hellora.experiments.experiment import Experiment
from hellora.experiments.prepare import prepare
from hellora.model.linear_head import linear_head
from hellora.record.checkpoint import load_state
from hellora.runs.run import run_experiment
from hellora.server.heads import solved, solved_first, with_the_better
from hellora.server.rounds import federate


def experiment(folder: Path, source: Path, **changes: Any) -> Experiment:
    table: dict[str, Any] = {
        "rounds": 2,
        "cohort": 3,
        "diagnostics": False,
        "model": {"name": str(folder), "rank": 4},
        "data": {"name": str(source), "clients": 6, "partitioner": "iid"},
        "method": {"start": "ridge", "allocator": "everything"},
        "train": {"batch_size": 8, "lr": 0.01},
        "compute": {"threads": 1, "device": "cpu"},
    }
    for section, values in changes.items():
        table[section] = {**table.get(section, {}), **values} if isinstance(values, Mapping) else values
    return check("heads", table)


def solved_head(run: Experiment) -> dict[str, torch.Tensor]:
    """The head before round 0."""
    setup = prepare(run)
    with setup.backend() as backend:
        state, waves = solved_first(setup.federation, setup.initial_state(), backend)
    assert waves
    return dict(state.adapter.head)


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


# --------------------------------------------------------------------------------------------------------- features


def test_features_do_not_depend_on_what_stands_beside(tiny_bert: Path) -> None:
    """The real loop, any order, any neighbours, an adapter that acts: the same bits for every row."""
    base, rows = bases.load(tiny_bert), bases.texts(61)
    adapter = bases.acting_adapter(base)
    whole = features_of(adapter, base, bases.MEAN_POOLING, bases.MEAN_POOLING.encode(base, rows))
    assert not torch.equal(whole, torch.zeros_like(whole))
    for seed, count in [(0, 61), (1, 7), (2, 1), (3, 30)]:
        chosen = np.random.default_rng(seed).permutation(61)[:count]
        some = bases.MEAN_POOLING.encode(base, rows.select(chosen))
        assert torch.equal(features_of(adapter, base, bases.MEAN_POOLING, some), whole[chosen])


def test_features_are_what_the_head_is_given(tiny_bert: Path) -> None:
    base, rows = bases.load(tiny_bert), bases.texts(9)
    kind, adapter = bases.MEAN_POOLING, bases.acting_adapter(base)
    encoded = kind.encode(base, rows)
    features = features_of(adapter, base, kind, encoded)
    with torch.no_grad(), base.adapted(adapter):
        for i in range(9):
            logits = kind.logits(base, kind.collate(base, [encoded.examples[i]]))
            expected = features[i] @ adapter.head["weight"].T + adapter.head["bias"]
            torch.testing.assert_close(logits[0], expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ the same bits


@pytest.mark.parametrize("start", ["ridge", "balanced_ridge", "class_means"])
def test_a_head_is_the_same_for_every_partition(start: str, tiny_bert: Path, sentences: Path) -> None:
    """From IID to one class per client, few clients or many, cohorts of any size."""
    method = {"method": {"start": start}}
    ways: list[dict[str, Any]] = [
        {"data": {"partitioner": "iid"}},
        {"data": {"partitioner": "iid", "clients": 2}, "cohort": 2},
        {"data": {"partitioner": "classes_per_client", "k": 1}},
        {"data": {"partitioner": "dirichlet", "alpha": 0.3, "min_examples": 1, "clients": 9}, "cohort": 4},
    ]
    first, *others = [bits(solved_head(experiment(tiny_bert, sentences, **way, **method))) for way in ways]
    assert all(other == first for other in others)


def test_a_head_is_that_of_a_dense_solution(tiny_bert: Path, sentences: Path) -> None:
    run = experiment(tiny_bert, sentences, method={"logit_scale": 1.0, "penalty": 1e-2})
    setup = prepare(run)
    adapter = new_adapter(setup.base.spec, setup.base.initial_head(), 0)
    phi = features_of(adapter, setup.base, run.task, setup.work.encoded).double()
    x = torch.cat([phi, torch.ones(len(phi), 1)], dim=1)
    y = torch.nn.functional.one_hot(torch.tensor(setup.corpus.train["label"]), len(setup.corpus.labels)).double()
    gram = x.T @ x
    weight = torch.linalg.solve(gram + 1e-2 * gram.trace() / len(gram) * torch.eye(len(gram)).double(), x.T @ y).T
    head = solved_head(run)
    torch.testing.assert_close(head["weight"].double(), weight[:, :-1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(head["bias"].double(), weight[:, -1], rtol=1e-6, atol=1e-6)


def test_every_world_solves_the_same_head(tiny_bert: Path, sentences: Path, tmp_path: Path) -> None:
    """One process, two, and a grid; solved before round 0, after each round, and trained on in between."""
    method = {"method": {"head": "closed_form", "head_rounds": 1, "start": "balanced_ridge"}}
    run = experiment(tiny_bert, sentences, **method)
    run_experiment(run, tmp_path / "one", Silent())
    run_experiment(experiment(tiny_bert, sentences, **method, compute={"workers": 2}), tmp_path / "two", Silent())
    grid = FakeGrid({node: {"partition-id": node - 50, "num-partitions": 6} for node in range(50, 56)})
    run_experiment(run, tmp_path / "grid", Silent(), preparing=SimulatedOnFlower(grid, lambda _: None).prepare)
    expected = bits(tensors(tmp_path / "one"))
    assert bits(tensors(tmp_path / "two")) == expected
    assert bits(tensors(tmp_path / "grid")) == expected


NAMES = ("through", "stopped")


class Stopping(Silent):
    """Stops a run when the head is solved, or after a round."""

    def __init__(self, when: str) -> None:
        self.when = when

    def head_solved(self, *_: Any) -> None:
        if self.when == "solved":
            raise KeyboardInterrupt

    def client_answered(self, *_: Any) -> None:
        if self.when == "asked":
            raise KeyboardInterrupt

    def round_finished(self, line: Any, *_: Any) -> None:
        if line["round"] == self.when:
            raise KeyboardInterrupt


def test_a_stop_changes_no_bit_and_no_byte_on_record(tiny_bert: Path, sentences: Path, tmp_path: Path) -> None:
    run = experiment(tiny_bert, sentences, method={"head_rounds": 1})
    run_experiment(run, tmp_path / "through", Silent())
    for when, resume in [("asked", False), ("solved", True), (0, True)]:
        with pytest.raises(KeyboardInterrupt):
            run_experiment(run, tmp_path / "stopped", Stopping(when), resume=resume)
    run_experiment(run, tmp_path / "stopped", Silent(), resume=True)
    assert bits(tensors(tmp_path / "stopped")) == bits(tensors(tmp_path / "through"))
    through, stopped = ([(line["sums"], line["uplink_bytes"]) for line in lines_of(tmp_path / n)] for n in NAMES)
    assert through == stopped


# ------------------------------------------------------------------------------------------------------- what is said


def test_a_run_says_what_the_head_alone_is_worth(tiny_bert: Path, sentences: Path, tmp_path: Path) -> None:
    summary = run_experiment(experiment(tiny_bert, sentences), tmp_path / "run", Silent())
    assert summary["solved"]["accuracy"] > summary["initial"]["accuracy"]
    first, second = lines_of(tmp_path / "run")
    asked = [wave["cohort"] for wave in first["sums"]]
    assert asked == [[0, 1, 2], [3, 4, 5]] * 3  # how large, sums, losses
    assert second["sums"] == []
    columns, classes = 33, 3
    up = 6 * 8 * (columns * 32 + columns * (columns + 1) // 2 + columns * classes + classes + 7)
    assert first["uplink_bytes"] - second["uplink_bytes"] == up


def test_nobody_trains_where_the_head_is_all(tiny_bert: Path, sentences: Path, tmp_path: Path) -> None:
    run = experiment(tiny_bert, sentences, rounds=1, method={"allocator": "nothing", "head": "frozen"})
    summary = run_experiment(run, tmp_path / "run", Silent())
    assert summary["final"] == summary["solved"]


def test_clients_that_cannot_train_take_part_in_sums(tiny_bert: Path, sentences: Path) -> None:
    everybody = solved_head(experiment(tiny_bert, sentences))
    some = experiment(tiny_bert, sentences, fleet={"layers": [0, "all"]}, cohort=2)
    assert bits(solved_head(some)) == bits(everybody)


def test_who_cannot_be_reached_is_on_record_and_asked_again(tiny_bert: Path, sentences: Path) -> None:
    run = experiment(tiny_bert, sentences, fleet={"availability": [0.6]})
    setup = prepare(run)
    with setup.backend() as backend:
        state, waves = solved_first(setup.federation, setup.initial_state(), backend)
        missing = {client for wave in waves for client in wave.missing}
        assert 0 < len(missing) < 6
        again = ServerState(3, state.adapter, state.strategies)
        _, later = solved(setup.federation, again, backend)
    assert {client for wave in later for client in wave.cohort} == set(range(6))
    assert {client for wave in later for client in wave.missing} != missing


def test_a_budget_that_allows_no_sum_leaves_a_client_out(tiny_bert: Path, sentences: Path) -> None:
    run = experiment(tiny_bert, sentences, fleet={"uplink": ["6KB", "10MB"], "layers": [1, 1]}, cohort=2)
    setup = prepare(run)
    with setup.backend() as backend:
        _, waves = solved_first(setup.federation, setup.initial_state(), backend)
    small = {p.id for p in setup.federation.fleet if p.budget.uplink_bytes == 6000}
    left_out = {client: why for wave in waves for client, why in wave.missing.items()}
    assert set(left_out) == small
    assert all("a sum takes" in why and "uplink 5.9 KiB" in why for why in left_out.values()), left_out


def test_a_projection_makes_sums_small(tiny_bert: Path, sentences: Path, tmp_path: Path) -> None:
    run = experiment(tiny_bert, sentences, method={"projection": 8}, rounds=1)
    summary = run_experiment(run, tmp_path / "run", Silent())
    (line,) = lines_of(tmp_path / "run")
    whole = run_experiment(experiment(tiny_bert, sentences, rounds=1), tmp_path / "whole", Silent())
    fewer = (33 - 9) * (32 + 3) + (33 * 34 - 9 * 10) // 2
    assert whole["uplink_bytes"] - summary["uplink_bytes"] == 6 * 8 * fewer
    assert line["sums"]
    assert load_state(tmp_path / "run" / "checkpoint")[0].adapter.head["weight"].shape == (3, 32)  # type: ignore[index]


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"start": "none", "head": "closed_form"}, "set method.start = 'ridge'"),
        ({"start": "none", "head_rounds": 2}, "method.head_rounds is of a head that is solved"),
        ({"head_begins": "drawn"}, "a start that is never used"),
        ({"head": "local", "head_rounds": 1}, "one model for all clients"),
        ({"head": "frozen", "head_mean": "by_class"}, "no head is aggregated"),
        ({"logit_scale": 0.0}, "logit_scale must be greater than 0"),
    ],
)
def test_what_cannot_be_is_refused(method: dict[str, Any], words: str, tiny_bert: Path, sentences: Path) -> None:
    with pytest.raises(InputError, match=words):
        experiment(tiny_bert, sentences, method=method)


def test_a_head_of_several_layers_is_refused(tiny_bert_with_head: Path, tiny_bert: Path) -> None:
    assert linear_head(bases.load(tiny_bert))[0] == ""
    base = bases.load(tiny_bert_with_head)
    base.head, base.head_modules = None, ("encoder.layer.0", "pooler")
    with pytest.raises(InputError, match=r"one linear layer on pooled features, and this model's is encoder\.layer\.0"):
        linear_head(base)


def test_nobody_answers(tiny_bert: Path, sentences: Path) -> None:
    setup = prepare(experiment(tiny_bert, sentences, fleet={"availability": [1e-9]}))
    with setup.backend() as backend, pytest.raises(RunError, match=r"no client summed its features.*not available"):
        solved_first(setup.federation, setup.initial_state(), backend)


def test_a_plan_says_what_a_head_costs(hellora: Any, tiny_bert: Path) -> None:
    where = ("--set", f"model.name={tiny_bert}", "--set", "model.rank=2")
    answer = hellora("plan", "ridge_lora", *where, "--set", "method.head_rounds=5", "--round", "1")
    assert answer.status == 0
    said = " ".join(answer.out.split())
    columns = 33
    up = 8 * (columns * 32 + columns * (columns + 1) // 2 + 7)
    assert "before round 0, after every 5 rounds, at the end: every client makes forward passes" in said
    assert f"(exponents, sums, losses) and sends {up / 1024:.1f} KiB, and {8 * (columns + 1)} B for each class." in said


def test_the_head_alone_is_trained(tiny_bert: Path, sentences: Path, tmp_path: Path) -> None:
    method = {"start": "none", "allocator": "head_alone", "local_training": ["one_vs_all"]}
    run = experiment(tiny_bert, sentences, method=method, train={"lr": 0.05})
    before = prepare(run).initial_state().adapter
    summary = run_experiment(run, tmp_path / "run", Silent())
    found = load_state(tmp_path / "run" / "checkpoint")
    assert found is not None
    after = found[0].adapter
    assert all(torch.equal(pair.A, before.pairs[n].A) and not pair.B.any() for n, pair in after.pairs.items())
    assert not torch.equal(after.head["weight"], before.head["weight"])
    assert summary["final"]["accuracy"] > summary["initial"]["accuracy"]
    for line in lines_of(tmp_path / "run"):
        assert len(line["updated"]) == 3
        assert line["uplink_bytes"] == 3 * 4 * 33 * 3


def test_a_head_that_nobody_trains_cannot_be_trained_alone(tiny_bert: Path, sentences: Path) -> None:
    with pytest.raises(InputError, match="'head_alone' needs a head that clients train"):
        experiment(tiny_bert, sentences, method={"start": "none", "allocator": "head_alone", "head": "frozen"})


class Lying:
    """A backend in which client 1 makes up what it sums."""

    def __init__(self, backend: Any, spoilt: Mapping[str, torch.Tensor]) -> None:
        self.backend, self.spoilt = backend, spoilt

    def train(self, orders: Any) -> Any:
        for answer in self.backend.train(orders):
            made_up = {name: tensor for name, tensor in self.spoilt.items() if name in answer.report}
            yield replace(answer, report={**answer.report, **made_up}) if answer.client == 1 else answer


@pytest.mark.parametrize(
    ("spoilt", "why"),
    [
        ({"start/gram": torch.full((33 * 34 // 2,), -5)}, "products are not those of features"),
        ({"start/counts": torch.tensor([16, 16, 16])}, "its classes have 48 examples, and it summed"),
    ],
)
def test_sums_that_cannot_be_are_rejected(
    spoilt: dict[str, torch.Tensor], why: str, tiny_bert: Path, sentences: Path
) -> None:
    setup = prepare(experiment(tiny_bert, sentences))
    with setup.backend() as backend:
        hostile: Any = Lying(backend, spoilt)
        _, waves = solved_first(setup.federation, setup.initial_state(), hostile)
    rejected = [dict(wave.rejected) for wave in waves if 1 in wave.cohort]
    assert [list(wave) for wave in rejected] == [[], [1], []]  # how large, sums, losses
    assert why in rejected[1][1]


@pytest.mark.parametrize("claimed", [2**33, 2**40])
def test_more_examples_than_can_be_summed_are_refused(claimed: int, tiny_bert: Path, sentences: Path) -> None:
    """The grid would be too coarse for all, because of one."""
    setup = prepare(experiment(tiny_bert, sentences))
    fleet = tuple(
        replace(client, num_examples=claimed) if client.id == 4 else client for client in setup.federation.fleet
    )
    run = replace(setup.federation, fleet=fleet)
    with setup.backend() as backend, pytest.raises(RunError, match=f"{claimed} of them client 4"):
        solved_first(run, setup.initial_state(), backend)


def test_sums_for_a_state_that_was_not_accepted_are_on_record(tiny_bert: Path, sentences: Path) -> None:
    """They were asked for, and sent."""
    method = {"head": "closed_form", "head_begins": "drawn", "head_rounds": 1}
    setup = prepare(experiment(tiny_bert, sentences, rounds=1, attempts=2, method=method))
    said = iter(["the loss on test examples is nan", ""])
    with setup.backend() as backend:
        run, state = setup.federation, setup.initial_state()
        (report,) = federate(state, run, backend, setup, lambda _: next(said))
    assert len(report.attempts) == 2
    assert [wave.cohort for wave in report.sums] == [(0, 1, 2), (3, 4, 5)] * 3 * 2


# ------------------------------------------------------------------------------------- the better of what was trained


BETTER = {"start": "ridge", "head": "closed_form", "ends_with": "better"}


def test_an_adapter_that_is_no_worse_stays(tiny_bert: Path, sentences: Path, tmp_path: Path) -> None:
    run_experiment(experiment(tiny_bert, sentences, method=BETTER), tmp_path / "out", Silent())
    first, last = (line["left_out"] for line in lines_of(tmp_path / "out"))
    assert first is None
    assert last[1] >= last[0] > 0.5
    state, _ = load_state(tmp_path / "out" / "checkpoint")
    assert any(bool(pair.B.any()) for pair in state.adapter.pairs.values())


def test_an_adapter_that_is_worse_is_put_back_and_what_ridge_made_is_left(tiny_bert: Path, sentences: Path) -> None:
    setup = prepare(experiment(tiny_bert, sentences, method=BETTER))
    run, adapter = setup.federation, bases.acting_adapter(setup.base)
    with setup.backend() as backend:
        begun, _ = solved_first(run, setup.initial_state(), backend)
    first = float(begun.strategies["start/right"][0])
    other = {name: tensor + 1 for name, tensor in begun.adapter.head.items()}
    trained = replace(begun, round=run.rounds, adapter=replace(adapter, head=other))
    for right, round, stays in ((first - 0.01, run.rounds, False), (first, run.rounds, True), (0.0, 1, True)):
        state = with_the_better(run, replace(trained, round=round), right)
        assert state.strategies["start/right"].tolist() == [first, right]
        assert any(bool(pair.B.any()) for pair in state.adapter.pairs.values()) == stays
        assert bits(state.adapter.head) == bits(other if stays else begun.adapter.head)


def test_what_is_compared_is_what_a_head_says_of_an_example_without_it(tiny_bert: Path, sentences: Path) -> None:
    """Against as many heads as examples, each solved without one of them."""
    run = experiment(tiny_bert, sentences, method={**BETTER, "logit_scale": 1.0, "penalty": 1e-2})
    setup = prepare(run)
    with setup.backend() as backend:
        state, _ = solved_first(setup.federation, setup.initial_state(), backend)
    adapter = new_adapter(setup.base.spec, setup.base.initial_head(), 0)
    phi = features_of(adapter, setup.base, run.task, setup.work.encoded).double()
    x = torch.cat([phi, torch.ones(len(phi), 1)], dim=1)
    every = torch.tensor(setup.work.data["label"][:])
    y = torch.nn.functional.one_hot(every, 3).double()
    penalty = 1e-2 * torch.trace(x.T @ x) / x.shape[1]  # λ stays that of all examples
    right = 0
    for row in range(len(x)):
        rest = torch.arange(len(x)) != row
        gram = x[rest].T @ x[rest] + penalty * torch.eye(x.shape[1])
        scores = torch.linalg.solve(gram, x[rest].T @ y[rest]).T @ x[row]
        right += int(scores.argmax() == every[row])
    assert float(state.strategies["start/right"][0]) == pytest.approx(right / len(x), abs=1e-12)


def test_the_comparison_is_the_same_for_every_partition(tiny_bert: Path, sentences: Path) -> None:
    found = []
    for way in ({"partitioner": "iid"}, {"partitioner": "classes_per_client", "k": 1}):
        setup = prepare(experiment(tiny_bert, sentences, method=BETTER, data=way))
        with setup.backend() as backend:
            state, _ = solved_first(setup.federation, setup.initial_state(), backend)
        found.append(bits(state.strategies))
    assert found[0] == found[1]


@pytest.mark.parametrize("wrong", [{"start": "class_means"}, {"head": "frozen"}, {"head_begins": "drawn"}])
def test_only_ridge_heads_before_and_after_are_compared(
    wrong: dict[str, Any], tiny_bert: Path, sentences: Path
) -> None:
    with pytest.raises(InputError, match=r"method.ends_with = 'better' compares heads"):
        experiment(tiny_bert, sentences, method={**BETTER, **wrong})
