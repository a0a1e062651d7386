"""federate with a fake backend at the seam."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.torch
import torch
from factories import (
    Answer,
    FakeBackend,
    Lent,
    aggregated,
    bits,
    fleet_of,
    method_of,
    random_adapter,
    state_bits,
    tiny_spec,
)
from hypothesis import given, settings
from torch import Tensor

from hellora.core.algebra import prototypes_of, trained_part
from hellora.core.errors import InputError, RunError
from hellora.core.exchange import ClientFailure, ClientUpdate, Declared, Factors, HeadPolicy, TrainSettings
from hellora.core.state import RoundReport, ServerState, StrategyState
from hellora.core.types import Adapter, Allocation, Budget, ClientProfile, LoraPair
from hellora.methods.aggregators.context_pad import ContextPad
from hellora.methods.aggregators.mutual_distillation import MutualDistillation
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.aggregators.sparsity_weighted import SparsityWeighted
from hellora.methods.aggregators.zero_pad import ZeroPad
from hellora.methods.allocators.everything import Everything
from hellora.methods.allocators.exclusive import Exclusive
from hellora.methods.allocators.fed_hello import FedHello
from hellora.methods.allocators.random_layers import RandomLayers
from hellora.methods.allocators.random_ranks import RandomRanks
from hellora.methods.allocators.self_pruning import SelfPruning
from hellora.methods.context import RoundContext, Scores
from hellora.methods.dispatchers.bypass import Bypass
from hellora.methods.dispatchers.prototype import Prototype
from hellora.methods.dispatchers.truncate import Truncate
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.local_training.hetlora import Hetlora
from hellora.methods.local_training.layer_scores import LayerScores
from hellora.methods.server_optimizers.average import Average
from hellora.methods.sharing import delta_norm, with_private
from hellora.methods.strategies import (
    Aggregator,
    Allocator,
    Answers,
    Dispatcher,
    LocalTraining,
    ServerOptimizer,
    Trains,
)
from hellora.server.federation import Federation
from hellora.server.rounds import allocate, federate, sample

SPEC = tiny_spec()
START = ServerState(0, random_adapter(SPEC, seed=1000))
AVERAGE = Average()
FLEET = fleet_of(1, 2, 3, 3, 2, 1)  # ids 10, 13, …, 25


def federation(
    allocator: Allocator | None = None,
    head: HeadPolicy = "aggregate",
    optimizer: ServerOptimizer = AVERAGE,
    dispatcher: Dispatcher | None = None,
    aggregator: Aggregator | None = None,
    trains: Trains = "both",
    shares: Factors = "both",
    rules: Sequence[LocalTraining] = (),
    **changes: Any,
) -> Federation:
    method = method_of(
        allocator or RandomLayers(),
        dispatcher or Whole(),
        aggregator or ParticipantMean(),
        local_training=tuple(rules),
        server_optimizer=optimizer,
        head=head,
        trains=trains,
        shares=shares,
    )
    run = Federation(SPEC, FLEET, method, rounds=1, cohort=4, seed=7, train=TrainSettings())
    return replace(run, **changes)


def reports_of(
    run: Federation, answers: Callable[[list[ClientUpdate]], Iterable[Answer]] = list, state: ServerState = START
) -> list[RoundReport]:
    return list(federate(state, run, FakeBackend(run.fleet, SPEC, answers)))


def cohort_of(run: Federation, round: int = 0, attempt: int = 0) -> tuple[ClientProfile, ...]:
    """Who is asked in an attempt at a round."""
    state = replace(START, round=round)
    return sample(run, run.context(state, attempt), state)[0].cohort


# --- the loop


def reloaded(state: ServerState) -> ServerState:
    """The state as a checkpoint would give it back: every tensor through bytes."""

    def load(tensors: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
        loaded = safetensors.torch.load(safetensors.torch.save({str(key): value for key, value in tensors.items()}))
        return {key: loaded[str(key)] for key in tensors}

    flat = load({f"{name}.{k}": t for name, p in state.adapter.pairs.items() for k, t in (("A", p.A), ("B", p.B))})
    pairs = {n: LoraPair(flat[f"{n}.A"], flat[f"{n}.B"], p.scale) for n, p in state.adapter.pairs.items()}
    adapter = Adapter(pairs, load(state.adapter.head))
    reports = {client: load(told) for client, told in state.reports.items()}
    kept = {client: load(own) for client, own in state.kept.items()}
    return ServerState(state.round, adapter, load(state.strategies), reports, kept, dict(state.kept_versions))


@pytest.mark.parametrize("head", ["aggregate", "local"])
@pytest.mark.parametrize("resample", ["every_round", "on_refresh"])
def test_resume_from_any_state_is_bit_identical(head: HeadPolicy, resample: Any) -> None:
    allocator = FedHello(warmup=2, refresh=3, scores="clients", resample=resample)
    run = federation(allocator, head, Average(lr=0.7, momentum=0.9), rules=[LayerScores()], rounds=9)
    undisturbed = reports_of(run)
    assert [report.round for report in undisturbed] == list(range(9))
    last = undisturbed[-1].state
    assert last.reports
    assert {key.partition("/")[0] for key in last.strategies} == {"allocator", "server_optimizer"}
    assert bool(last.private) == (head == "local")
    for done, report in enumerate(undisturbed, start=1):
        resumed = reports_of(run, state=reloaded(report.state))
        assert [r.round for r in resumed] == list(range(done, 9))
        assert [state_bits(r.state) for r in resumed] == [state_bits(r.state) for r in undisturbed[done:]]


def test_finished_states_do_not_change_later() -> None:
    run = federation(FedHello(scores="clients"), "local", Average(0.7, 0.9), rules=[LayerScores()], rounds=4)
    seen = []
    kept = []
    for report in federate(START, run, FakeBackend(FLEET, SPEC)):
        seen.append(state_bits(report.state))
        kept.append(report.state)
    assert [state_bits(state) for state in kept] == seen
    assert len({str(state) for state in seen}) == 4


def test_scores_are_those_of_the_current_adapter() -> None:
    asked: list[Adapter] = []

    class Scoring(Lent):
        def layer_scores(self, adapter: Adapter) -> Scores:
            asked.append(adapter)
            return np.arange(3.0)

    run = federation(FedHello(warmup=1, refresh=2), rounds=4)
    states = [START] + [report.state for report in federate(START, run, FakeBackend(FLEET, SPEC), Scoring())]
    assert [bits(a.tensors()) for a in asked] == [bits(states[t].adapter.tensors()) for t in (1, 3)]


def test_tasks_carry_what_a_client_needs() -> None:
    run = federation(head="frozen", rounds=2)
    backend = FakeBackend(FLEET, SPEC)
    reports = list(federate(START, run, backend))
    for report, tasks in zip(reports, backend.calls, strict=True):
        assert tuple(task.client for task in tasks) == report.counted.cohort == tuple(sorted(report.counted.cohort))
        assert len(tasks) == 4
        for task in tasks:
            assert (task.round, task.train, task.head) == (report.round, run.train, "frozen")
            assert np.array_equal(task.trained, report.allocation.row(task.client))
            assert (task.declared, task.brief, task.kept) == (Declared(), {}, {})
    seeds = [task.seed for tasks in backend.calls for task in tasks]
    assert len(set(seeds)) == len(seeds)


def test_the_aggregate_is_folded_into_the_state() -> None:
    run = federation(Everything(), fleet=fleet_of(3))
    backend = FakeBackend(run.fleet, SPEC)
    (report,) = federate(START, run, backend)
    sent = backend.trained(backend.calls[0][0])
    assert bits(report.state.adapter.tensors()) == bits(sent.adapter.tensors()) != bits(START.adapter.tensors())
    assert report.state.round == 1
    assert report.counted.updated == (10,)
    assert len(report.attempts) == 1
    moved = pytest.approx(delta_norm(sent.adapter, START.adapter), rel=1e-5)
    assert report.client_metrics == {10: {"examples": 5, "loss": 1.0, "delta_norm": moved, "delta_cosine": 1.0}}


# --- the cohort


def test_cohort_is_sampled_by_seed_round_and_attempt_among_those_who_can() -> None:
    run = federation(fleet=fleet_of(0, 1, 0, 2, 3, 3, None, -1), cohort=3)
    cohorts = [tuple(p.id for p in cohort_of(run, t, attempt)) for t in range(30) for attempt in range(2)]
    assert all(len(set(ids)) == 3 and list(ids) == sorted(ids) for ids in cohorts)
    assert {id for ids in cohorts for id in ids} == {13, 19, 22, 25, 28}
    assert len(set(cohorts)) > 5
    assert any(a != b for a, b in zip(cohorts[::2], cohorts[1::2], strict=True)), "attempts have their own cohort"
    assert [p.id for p in cohort_of(replace(run, cohort=99))] == [13, 19, 22, 25, 28]


def test_capacity_0_for_all_is_refused() -> None:
    with pytest.raises(InputError, match="no client can train a layer"):
        federation(fleet=fleet_of(0, 0))


def test_an_allocation_over_budget_is_refused() -> None:
    class Greedy(Allocator):
        def allocate(self, context: RoundContext) -> tuple[Allocation, StrategyState]:
            return context.allocation([range(3)] * len(context.cohort)), {}

    with pytest.raises(InputError, match="3 layers, but its budget is"):
        allocate(federation(Greedy(), cohort=6), START, None)


# --- answers


def with_pair(update: ClientUpdate, change: Callable[[LoraPair], LoraPair]) -> ClientUpdate:
    """The update with its first pair changed."""
    name, pair = next(iter(update.adapter.pairs.items()))
    return replace(update, adapter=replace(update.adapter, pairs={**update.adapter.pairs, name: change(pair)}))


def with_head(update: ClientUpdate, head: Mapping[str, Tensor]) -> ClientUpdate:
    return replace(update, adapter=replace(update.adapter, head=head))


def poked(tensor: Tensor, value: float) -> Tensor:
    """The tensor with one value replaced."""
    copy = tensor.clone()
    copy.view(-1)[-1] = value
    return copy


def without(tensors: Mapping[str, Any], name: str | None = None) -> dict[str, Any]:
    """All but one, the last if not named."""
    return {key: value for key, value in tensors.items() if key != (name or list(tensors)[-1])}


def rescaled(pairs: Mapping[str, LoraPair], scale: float) -> dict[str, LoraPair]:
    """The pairs, the first one with another scale."""
    first, *_ = pairs
    return {**pairs, first: replace(pairs[first], scale=scale)}


FIRST = SPEC.modules[0].name
SPOILT: dict[str, tuple[Callable[[ClientUpdate], ClientUpdate], str]] = {
    "nan in A": (
        lambda u: with_pair(u, lambda p: replace(p, A=poked(p.A, float("nan")))),
        "lora_A has nan or infinite values",
    ),
    "inf in B": (
        lambda u: with_pair(u, lambda p: replace(p, B=poked(p.B, float("-inf")))),
        "lora_B has nan or infinite values",
    ),
    "nan in head": (
        lambda u: with_head(u, {**u.adapter.head, "bias": poked(u.adapter.head["bias"], float("nan"))}),
        "head.bias has nan",
    ),
    "fewer rank components": (
        lambda u: with_pair(u, lambda p: LoraPair(p.A[:1], p.B[:, :1], p.scale)),
        "(1, 5), expected torch.float32 (4, 5)",
    ),
    "head shape": (
        lambda u: with_head(u, {**u.adapter.head, "bias": torch.zeros(3)}),
        "head.bias is torch.float32 (3,), expected torch.float32 (2,)",
    ),
    "dtype": (lambda u: with_pair(u, lambda p: replace(p, A=p.A.double())), "lora_A is torch.float64"),
    "unknown module": (
        lambda u: replace(
            u, adapter=replace(u.adapter, pairs={**u.adapter.pairs, "other": next(iter(u.adapter.pairs.values()))})
        ),
        "unknown tensor other.lora_A",
    ),
    "unknown head": (lambda u: with_head(u, {**u.adapter.head, "x": torch.zeros(1)}), "unknown tensor head.x"),
    "absent module": (lambda u: replace(u, adapter=replace(u.adapter, pairs=without(u.adapter.pairs))), "is absent"),
    "absent head": (lambda u: with_head(u, without(u.adapter.head, "bias")), "tensor head.bias is absent"),
    "no examples": (lambda u: replace(u, num_examples=0), "trained on 0 examples"),
    "no tokens": (lambda u: replace(u, num_tokens=0), "trained on 0 tokens"),
    "too many examples": (lambda u: replace(u, num_examples=10**12), "trained on 1000000000000 examples, but it has"),
    "one example more": (lambda u: replace(u, num_examples=u.num_examples + 1), "examples, but it has"),
    "too many tokens": (lambda u: replace(u, num_tokens=10**12), "trained on 1000000000000 tokens of"),
    "metrics": (lambda u: replace(u, metrics={str(i): i for i in range(215)}), "has 215 metrics, at most 214"),
    "infinite metric": (lambda u: replace(u, metrics={"loss": -torch.inf}), "its metric 'loss' is -inf"),
    "truth metric": (lambda u: replace(u, metrics={"loss": True}), "its metric 'loss' is True"),
    "text metric": (lambda u: replace(u, metrics={"loss": "low"}), "its metric 'loss' is 'low'"),  # type: ignore[dict-item]
    "metric's name": (lambda u: replace(u, metrics={"x" * 101: 0.0}), "a metric has the name 'xxx"),
    "scale": (
        lambda u: replace(u, adapter=replace(u.adapter, pairs=rescaled(u.adapter.pairs, 1e6))),
        "has scale 1000000.0, expected 2.0",
    ),
    "nan scale": (
        lambda u: replace(u, adapter=replace(u.adapter, pairs=rescaled(u.adapter.pairs, torch.nan))),
        "has scale nan, expected 2.0",
    ),
}


@pytest.mark.parametrize(("spoil", "reason"), SPOILT.values(), ids=SPOILT.keys())
def test_a_bad_update_is_rejected_and_does_not_count(
    spoil: Callable[[ClientUpdate], ClientUpdate], reason: str
) -> None:
    (report,) = reports_of(federation(), lambda updates: [spoil(updates[0]), *updates[1:]])
    bad = report.counted.cohort[0]
    assert list(report.counted.rejected) == [bad]
    assert reason in report.counted.rejected[bad]
    assert report.counted.updated == report.counted.cohort[1:] == tuple(report.client_metrics)
    assert not report.counted.missing
    (absent,) = reports_of(federation(), lambda updates: updates[1:])
    assert state_bits(report.state) == state_bits(absent.state)
    assert bad in report.counted.uplink_bytes, "what it sent has travelled"


SCORES = "layer_scores/scores"


def told(update: ClientUpdate, values: Any) -> ClientUpdate:
    return replace(update, report={SCORES: torch.as_tensor(values, dtype=torch.float64)})


SPOILT_REPORTS: dict[str, tuple[Callable[[ClientUpdate], ClientUpdate], str]] = {
    "negative": (lambda u: told(u, [1.0, torch.nan, -1.0]), f"report {SCORES} has values outside 0 to inf"),
    "infinite": (lambda u: told(u, [1.0, torch.nan, torch.inf]), f"report {SCORES} has nan or infinite values"),
    "dtype": (
        lambda u: replace(u, report={SCORES: torch.ones(3, dtype=torch.bool)}),
        f"report {SCORES} is torch.bool (3,), expected torch.float64 (3,)",
    ),
    "shape": (lambda u: told(u, [0.0, 0.0]), f"report {SCORES} is torch.float64 (2,), expected torch.float64 (3,)"),
    "absent": (lambda u: replace(u, report={}), f"report {SCORES} is absent"),
    "undeclared": (lambda u: replace(u, report={**u.report, "x/y": torch.ones(1)}), "report x/y was not declared"),
    "kept": (lambda u: replace(u, kept={"x/y": torch.ones(1)}), "kept tensor x/y was not declared"),
}


@pytest.mark.parametrize(("spoil", "reason"), SPOILT_REPORTS.values(), ids=SPOILT_REPORTS.keys())
def test_a_bad_report_is_rejected_and_does_not_count(
    spoil: Callable[[ClientUpdate], ClientUpdate], reason: str
) -> None:
    run = federation(rules=[LayerScores()])
    (report,) = reports_of(run, lambda updates: [spoil(updates[0]), *updates[1:]])
    bad = report.counted.cohort[0]
    assert report.counted.rejected == {bad: reason}
    (absent,) = reports_of(run, lambda updates: updates[1:])
    assert state_bits(report.state) == state_bits(absent.state)
    assert report.state.reports.keys() == set(report.counted.cohort[1:])


def test_what_was_not_declared_is_refused_of_plain_training() -> None:
    (report,) = reports_of(federation(), lambda updates: [told(updates[0], [1.0, 1.0, 1.0]), *updates[1:]])
    assert report.counted.rejected == {report.counted.cohort[0]: f"report {SCORES} was not declared"}


def test_a_module_of_a_frozen_layer_is_rejected() -> None:
    """One that the global adapter has, but that was not this client's to train."""

    def overreach(updates: list[ClientUpdate]) -> list[Answer]:
        pairs = {**START.adapter.pairs, **updates[0].adapter.pairs}
        return [replace(updates[0], adapter=replace(updates[0].adapter, pairs=pairs)), *updates[1:]]

    (report,) = reports_of(federation(cohort=6), overreach)
    assert "unknown tensor block." in report.counted.rejected[10]


def test_a_delta_beyond_the_norm_is_rejected_with_its_norm() -> None:
    """The head alone moves: 3 and 4 make 5."""

    def moved_by(factor: float) -> Callable[[list[ClientUpdate]], list[Answer]]:
        def answers(updates: list[ClientUpdate]) -> list[Answer]:
            head = {name: tensor.clone() for name, tensor in START.adapter.head.items()}
            head["weight"][0, 0] += 3 * factor
            head["bias"][1] += 4 * factor
            still = {name: START.adapter.pairs[name] for name in updates[0].adapter.pairs}
            return [replace(updates[0], adapter=Adapter(still, head)), *updates[1:]]

        return answers

    run = federation(Everything(), cohort=1)
    (within,) = reports_of(replace(run, max_norm=5.01), moved_by(1))
    assert not within.counted.rejected
    (beyond,) = reports_of(replace(run, max_norm=5.01, cohort=6), moved_by(2))
    assert beyond.counted.rejected[10] == "its delta has a norm of 10, and guard.max_norm is 5.01"
    assert set(beyond.counted.updated) == {13, 16, 19, 22, 25}
    (anything,) = reports_of(run, moved_by(1e6))
    assert not anything.counted.rejected


def test_what_a_client_has_need_not_be_known() -> None:
    fleet = tuple(replace(profile, num_examples=0) for profile in FLEET)
    backend = FakeBackend(FLEET, SPEC)
    (report,) = federate(START, federation(fleet=fleet), backend)
    assert not report.counted.rejected


def test_missing_and_failed_clients() -> None:
    def answers(updates: list[ClientUpdate]) -> list[Answer]:
        first, _, third, fourth = updates
        return [ClientFailure(first.client, "rejected", "out of memory"), third, fourth]

    (report,) = reports_of(federation(), answers)
    a, b, c, d = report.counted.cohort
    assert report.counted.rejected == {a: "out of memory"}
    assert report.counted.missing == {b: "no answer"}
    assert report.counted.updated == (c, d)
    assert set(report.counted.uplink_bytes) == {c, d}
    assert set(report.counted.downlink_bytes) == {a, b, c, d}


def test_duplicates_count_once_strangers_and_late_answers_not_at_all() -> None:
    def answers(updates: list[ClientUpdate]) -> list[Answer]:
        first = updates[0]
        later = with_head(first, {name: t + 1 for name, t in first.adapter.head.items()})
        stranger = replace(first, client=999)
        failure = ClientFailure(888, "missing", "who?")
        late = replace(later, round=first.round - 1)
        return [late, stranger, *updates, later, ClientFailure(first.client, "missing", "late"), failure, *updates]

    (noisy,), (quiet,) = reports_of(federation(), answers), reports_of(federation())
    assert state_bits(noisy.state) == state_bits(quiet.state)
    assert noisy.counted.updated == quiet.counted.updated
    assert not noisy.counted.missing
    assert not noisy.counted.rejected
    first, *others = noisy.counted.cohort
    assert noisy.counted.dropped == {
        first: ["late: it answered round -1", *["answered already"] * 3],
        **{client: ["answered already"] for client in others},
        999: ["was not asked"],
        888: ["was not asked"],
    }
    assert not quiet.counted.dropped


@given(seed=st.integers(0, 9999))
@settings(deadline=None, max_examples=4, derandomize=True, database=None)
def test_the_order_of_arrival_is_irrelevant(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def shuffled(updates: list[ClientUpdate]) -> list[Answer]:
        return [updates[i] for i in rng.permutation(len(updates))]

    allocator = FedHello(scores="clients", warmup=1)
    run = federation(allocator, "local", Average(0.7, 0.9), rules=[LayerScores()], rounds=4, cohort=6)
    in_order, mixed = reports_of(run), reports_of(run, shuffled)
    assert [state_bits(r.state) for r in mixed] == [state_bits(r.state) for r in in_order]
    assert [r.counted.updated for r in mixed] == [r.counted.updated for r in in_order]


# --- too few updates


def test_too_few_updates_repeat_the_round_with_another_cohort() -> None:
    run = federation(min_clients=3)
    rounds = iter([1, 2, 4])  # how many answer

    def answers(updates: list[ClientUpdate]) -> list[Answer]:
        return list(updates[: next(rounds)])

    backend = FakeBackend(FLEET, SPEC, answers)
    (report,) = federate(START, run, backend)
    cohorts = [tuple(p.id for p in cohort_of(run, 0, attempt)) for attempt in range(3)]
    assert [tuple(task.client for task in tasks) for tasks in backend.calls] == cohorts
    assert len(set(cohorts)) > 1
    assert [attempt.cohort for attempt in report.attempts] == cohorts
    assert [len(attempt.missing) for attempt in report.attempts] == [3, 2, 0]
    assert report.downlink_bytes == sum(task.adapter.num_bytes for tasks in backend.calls for task in tasks)
    assert report.counted.cohort == cohorts[2]
    assert report.counted.updated == report.counted.cohort
    assert report.state.round == 1


def test_exactly_enough_updates_are_enough() -> None:
    (report,) = reports_of(federation(min_clients=3), lambda updates: updates[:3])
    assert len(report.attempts) == 1
    assert len(report.counted.updated) == 3


def test_too_few_updates_in_every_attempt_stop_the_run() -> None:
    run = federation(min_clients=2, attempts=2, rounds=3)
    backend = FakeBackend(FLEET, SPEC)
    reports = federate(START, run, backend)
    state = next(reports).state
    backend.answers = lambda updates: updates[:1]
    with pytest.raises(
        RunError, match=r"round 1 had 1 usable updates, min_clients is 2, in each of 2 attempts"
    ) as error:
        next(reports)
    assert "missing: no answer" in str(error.value)
    assert len(backend.calls) == 3
    backend.answers = list
    later = list(federate(state, run, backend))
    assert [state_bits(r.state) for r in later] == [state_bits(r.state) for r in reports_of(run)[1:]]


# --- rounds without participants


def test_a_round_that_asks_nobody_leaves_the_adapter_unchanged() -> None:
    fleet = fleet_of(1, 1, 1, 1, 1, 3)
    run = federation(Exclusive(), optimizer=Average(0.7, 0.9), rounds=12, fleet=fleet, cohort=2, min_clients=1)
    before, idle, busy = START, 0, 0
    for report in reports_of(run):
        if 25 in report.counted.cohort:
            busy += 1
            assert report.counted.updated == (25,)
            assert state_bits(report.state) != state_bits(before)
        else:
            idle += 1
            assert report.counted.updated == ()
            assert not report.counted.missing
            assert not report.counted.rejected
            assert bits(report.state.adapter.tensors()) == bits(before.adapter.tensors())
            assert bits(report.state.strategies) == bits(before.strategies)
            assert not report.downlink_bytes
            assert not report.uplink_bytes
        assert report.state.round == before.round + 1
        before = report.state
    assert idle
    assert busy
    assert before.strategies


# --- the head


def test_aggregated_head_is_the_mean_weighted_by_examples() -> None:
    backend = FakeBackend(FLEET, SPEC)
    (report,) = federate(START, federation(), backend)
    updates = [backend.trained(task) for task in backend.calls[0]]
    total = sum(u.num_examples for u in updates)
    for name, head in report.state.adapter.head.items():
        mean = sum(u.adapter.head[name].double() * u.num_examples for u in updates) / total
        np.testing.assert_allclose(head.numpy(), np.asarray(mean), rtol=1e-6)
    assert not report.state.private


@pytest.mark.parametrize("optimizer", [Average(), Average(0.7, 0.9)], ids=repr)
def test_frozen_head_is_sent_but_never_comes_back(optimizer: ServerOptimizer) -> None:
    run = federation(head="frozen", optimizer=optimizer, rounds=3)
    backend = FakeBackend(FLEET, SPEC)
    for report in federate(START, run, backend):
        assert bits(report.state.adapter.head) == bits(START.adapter.head)
        assert all(bits(task.adapter.head) == bits(START.adapter.head) for task in backend.calls[-1])
        assert not report.counted.rejected
        assert not report.state.private
    (refused,) = reports_of(
        replace(run, rounds=1), lambda updates: [with_head(updates[0], START.adapter.head), *updates[1:]]
    )
    assert "unknown tensor head." in refused.counted.rejected[refused.counted.cohort[0]]


@pytest.mark.parametrize("optimizer", [Average(), Average(0.7, 0.9)], ids=repr)
def test_local_head_stays_with_its_client(optimizer: ServerOptimizer) -> None:
    run = federation(head="local", optimizer=optimizer, rounds=4)
    backend = FakeBackend(FLEET, SPEC)
    own: dict[int, Mapping[str, Tensor]] = {}
    came_back = 0
    for report in federate(START, run, backend):
        assert bits(report.state.adapter.head) == bits(START.adapter.head)
        for task in backend.calls[-1]:
            came_back += task.client in own
            assert bits(task.adapter.head) == bits(own.get(task.client, START.adapter.head))
            own[task.client] = backend.trained(task).adapter.head
        flat = {client: {f"head.{name}": t for name, t in head.items()} for client, head in own.items()}
        assert {c: bits(h) for c, h in report.state.private.items()} == {c: bits(h) for c, h in flat.items()}
    assert came_back


# --- bytes


@pytest.mark.parametrize(
    ("head", "first", "later", "up"), [("aggregate", 8, 8, 8), ("frozen", 8, 8, 0), ("local", 8, 0, 0)]
)
def test_bytes_are_what_travels(head: HeadPolicy, first: int, later: int, up: int) -> None:
    """A layer has a module 5 → 6 and one 5 → 3: 19 values per rank component; the head has 8. 4 bytes each. A client's
    own head comes once.
    """
    layers = {p.id: p.budget.capacity(3) for p in FLEET}
    for report, down in zip(reports_of(federation(head=head, cohort=6, rounds=3)), (first, later, later), strict=True):
        assert report.counted.downlink_bytes == dict.fromkeys(layers, 4 * (3 * 4 * 19 + down))
        assert report.counted.uplink_bytes == {client: 4 * (count * 4 * 19 + up) for client, count in layers.items()}


def test_min_clients_also_counts_where_fewer_are_asked() -> None:
    run = federation(Exclusive(), rounds=12, fleet=fleet_of(1, 1, 1, 1, 1, 3), cohort=2, min_clients=2)
    with pytest.raises(RunError, match="had 1 usable updates, min_clients is 2"):
        reports_of(run)


# --- prototypes


UNEQUAL = tuple(ClientProfile(10 + i, 5, Budget(rank=rank)) for i, rank in enumerate((1, 1, 2, 2, 4, 4)))
HELORA = method_of(Everything(), Prototype(), MutualDistillation())


def test_an_aggregator_that_distils_is_lent_a_model_for_the_means_within_ranks() -> None:
    """Here distilling adds 1 to every B, so that it shows in the state, and in what the next round sends."""
    asked: list[tuple[Mapping[int, Adapter], Mapping[int, float], Any, int]] = []

    def distil(
        students: Mapping[int, Adapter], weights: Mapping[int, float], how: Any, seed: int
    ) -> dict[int, Adapter]:
        asked.append((students, weights, how, seed))
        return {rank: raised(student) for rank, student in students.items()}

    def raised(adapter: Adapter) -> Adapter:
        return replace(adapter, pairs={name: replace(pair, B=pair.B + 1) for name, pair in adapter.pairs.items()})

    run = federation(method=HELORA, fleet=UNEQUAL, cohort=6, rounds=2)
    backend = FakeBackend(UNEQUAL, SPEC)
    reports = list(federate(START, run, backend, Lent(taught=distil)))
    starts = [START, reports[0].state]
    for report, (students, weights, how, _), before, tasks in zip(reports, asked, starts, backend.calls, strict=True):
        assert report.counted.updated == tuple(p.id for p in UNEQUAL)
        assert (weights, how) == ({1: 1.0, 2: 1.0, 4: 1.0}, HELORA.aggregator)
        answers = [(task, backend.trained(task)) for task in tasks]
        expected = prototypes_of(aggregated(HELORA.aggregator, before.adapter, answers, SPEC), SPEC)
        assert list(report.state.adapter.prototypes) == [1, 2]
        assert list(students) == list(expected) == [1, 2, 4]
        for rank, found in prototypes_of(report.state.adapter, SPEC).items():
            assert bits(students[rank].tensors()) == bits(expected[rank].tensors())
            assert bits(found.tensors()) == bits(raised(expected[rank]).tensors())
    assert asked[0][3] != asked[1][3], "a seed for every round"
    known = prototypes_of(reports[0].state.adapter, SPEC)
    for task, profile in zip(backend.calls[1], UNEQUAL, strict=True):
        assert isinstance(profile.budget.rank, int)
        assert bits(task.adapter.tensors()) == bits(known[profile.budget.rank].tensors())


def test_only_an_aggregator_that_distils_needs_a_model_for_it() -> None:
    assert len(reports_of(federation())) == 1
    with pytest.raises(InputError, match="mutual_distillation needs a model and public data"):
        reports_of(federation(method=HELORA, fleet=UNEQUAL))


@pytest.mark.parametrize("step", [Average(), Average(lr=0.5, momentum=0.5)])
def test_what_else_an_adapter_holds_stays_through_a_round(step: ServerOptimizer) -> None:
    """Only a dispatcher may leave something of it out."""
    residual = {SPEC.modules[0].name: START.adapter.pairs[SPEC.modules[0].name]}

    class KeepsResidual(ParticipantMean):
        def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
            adapter, state = super().aggregate(context, answers)
            return replace(adapter, residual=context.adapter.residual), state

    method = method_of(Everything(), Whole(), KeepsResidual(), server_optimizer=step, head="frozen")
    state = replace(START, adapter=replace(START.adapter, residual=residual))
    backend = FakeBackend(FLEET, SPEC)
    (report,) = federate(state, federation(method=method), backend)
    assert report.state.adapter.residual is residual
    assert all(task.adapter.residual is residual for task in backend.calls[0])


# --- unequal ranks


def ranked(*ranks: int | tuple[int, ...] | None) -> tuple[ClientProfile, ...]:
    return fleet_of(*(Budget(rank=rank) for rank in ranks))


def test_a_client_without_any_rank_is_never_asked() -> None:
    run = federation(fleet=ranked(0, 2, (0, 0, 0), (0, 1, 0)), cohort=4)
    assert [p.id for p in cohort_of(run)] == [13, 19]
    with pytest.raises(InputError, match="no client can train a layer"):
        federation(fleet=ranked(0, (0, 0, 0)))
    with pytest.raises(InputError, match=r"fleet\.ranks has 2 ranks for 3 layers"):
        federation(fleet=ranked((1, 2)))


@pytest.mark.parametrize("dispatcher", [Whole(), Truncate()], ids=repr)
def test_rank_budgets_decide_what_is_trained_and_what_travels(dispatcher: Dispatcher) -> None:
    """19 values per rank component and layer, 8 of the head, 4 bytes each."""
    run = federation(Everything(), dispatcher=dispatcher, fleet=ranked(1, None, (2, 0, 4)), cohort=3)
    backend = FakeBackend(run.fleet, SPEC)
    (report,) = federate(START, run, backend)
    ranks = {10: [1, 1, 1], 13: [4, 4, 4], 16: [2, 0, 4]}
    assert dict(zip(report.allocation.clients, report.allocation.ranks.tolist(), strict=True)) == ranks
    assert report.counted.uplink_bytes == {client: 4 * (19 * sum(row) + 8) for client, row in ranks.items()}
    sent = {10: 3, 13: 12, 16: 2 + 4 + 4} if dispatcher == Truncate() else dict.fromkeys(ranks, 12)
    assert report.counted.downlink_bytes == {client: 4 * (19 * count + 8) for client, count in sent.items()}
    if dispatcher == Truncate():
        assert backend.calls[0][0].adapter.pairs["block.0.query"].A.shape == (1, 5)
    assert report.counted.updated == (10, 13, 16)


def test_updates_of_clients_that_bypass_blocks_are_aggregated() -> None:
    run = federation(dispatcher=Bypass(), fleet=fleet_of(1, 2, 1, 2), rounds=3)
    whole = federation(fleet=run.fleet, rounds=3)
    backend = FakeBackend(run.fleet, SPEC)
    reports = list(federate(START, run, backend))
    for tasks in backend.calls:
        for task in tasks:
            assert task.bypass
            assert {SPEC.layer_of[name] for name in task.adapter.pairs} == set(np.flatnonzero(task.trained.any(axis=1)))
    expected = reports_of(whole)
    assert [state_bits(r.state) for r in reports] == [state_bits(r.state) for r in expected]
    assert [r.counted.updated for r in reports] == [(10, 13, 16, 19)] * 3
    assert all(r.downlink_bytes < e.downlink_bytes for r, e in zip(reports, expected, strict=True))


RANK = "hetlora/rank"


def told_ranks(state: ServerState) -> dict[int, int]:
    return {client: int(told[RANK]) for client, told in state.reports.items()}


def test_reported_ranks_reach_the_next_allocation_and_a_checkpoint() -> None:
    def pruning(updates: list[ClientUpdate]) -> list[Answer]:
        return [replace(u, report={RANK: torch.tensor(2)} if u.client == 10 else {}) for u in updates]

    run = federation(SelfPruning(), dispatcher=Truncate(), fleet=ranked(3, 4), rules=[Hetlora()], cohort=2, rounds=3)
    reports = reports_of(run, pruning)
    assert [r.allocation.ranks[:, 0].tolist() for r in reports] == [[3, 4], [2, 4], [2, 4]]
    assert [told_ranks(r.state) for r in reports] == [{10: 2}] * 3
    assert [r.state.strategies.get("allocator/ranks", torch.empty(0)).tolist() for r in reports] == [
        [],
        *[[[10, 2]]] * 2,
    ]
    resumed = list(federate(reloaded(reports[0].state), run, FakeBackend(run.fleet, SPEC, pruning)))
    assert [state_bits(r.state) for r in resumed] == [state_bits(r.state) for r in reports[1:]]


@pytest.mark.parametrize(
    ("rank", "reason"),
    [
        (0, "has values outside 1 to 3"),
        (4, "has values outside 1 to 3"),
        (-1, "has values outside 1 to 3"),
        (2.0, "is torch.float32 (), expected torch.int64 ()"),
        ([2], "is torch.int64 (1,), expected torch.int64 ()"),
    ],
)
def test_a_rank_that_was_not_given_is_rejected(rank: Any, reason: str) -> None:
    run = federation(SelfPruning(), fleet=ranked((1, 3, 2), 4), rules=[Hetlora()], cohort=2)

    def told(updates: list[ClientUpdate]) -> list[Answer]:
        ranks = {10: torch.tensor(rank), 13: torch.tensor(4)}
        return [replace(update, report={RANK: ranks[update.client]}) for update in updates]

    (report,) = reports_of(run, told)
    assert report.counted.rejected == {10: f"report {RANK} {reason}"}
    assert told_ranks(report.state) == {13: 4}


# --- one factor: FFA-LoRA, RoLoRA, FedSA-LoRA


def factors_of(adapter: Adapter, factor: str) -> dict[Any, Any]:
    return bits({name: t for name, t in adapter.tensors().items() if name.endswith(f".lora_{factor}")})


STEPS = pytest.mark.parametrize("optimizer", [Average(), Average(0.7, 0.9)], ids=repr)
AGGREGATORS = pytest.mark.parametrize(
    "aggregator", [ParticipantMean(), ZeroPad(), ContextPad("linear"), SparsityWeighted()], ids=repr
)


@STEPS
@AGGREGATORS
def test_a_factor_that_is_never_trained_is_bit_identical_for_ever(
    aggregator: Aggregator, optimizer: ServerOptimizer
) -> None:
    """FFA-LoRA, also where padding would dilute A; the update carries B alone: 9 of the 19 values."""
    run = federation(Everything(), aggregator=aggregator, optimizer=optimizer, fleet=ranked(2, 4), trains="B", rounds=3)
    before = START
    for report in reports_of(run):
        assert factors_of(report.state.adapter, "A") == factors_of(START.adapter, "A")
        assert factors_of(report.state.adapter, "B") != factors_of(before.adapter, "B")
        assert report.counted.uplink_bytes == {10: 4 * (9 * 3 * 2 + 8), 13: 4 * (9 * 3 * 4 + 8)}
        assert report.counted.downlink_bytes == dict.fromkeys((10, 13), 4 * (19 * 3 * 4 + 8))
        before = report.state


@STEPS
@AGGREGATORS
def test_alternating_begins_with_B(aggregator: Aggregator, optimizer: ServerOptimizer) -> None:
    run = federation(
        Everything(), aggregator=aggregator, optimizer=optimizer, fleet=ranked(2, 4), trains="alternate", rounds=4
    )
    backend = FakeBackend(run.fleet, SPEC)
    before = START.adapter
    for report in federate(START, run, backend):
        moves, still = ("A", "B") if report.round % 2 else ("B", "A")
        assert {task.factors for task in backend.calls[-1]} == {moves}
        assert factors_of(report.state.adapter, moves) != factors_of(before, moves)
        assert factors_of(report.state.adapter, still) == factors_of(before, still)
        per_component = 10 if moves == "A" else 9
        assert report.counted.uplink_bytes == {10: 4 * (per_component * 6 + 8), 13: 4 * (per_component * 12 + 8)}
        before = report.state.adapter


def test_zero_padding_of_one_factor_is_the_exact_mean_of_products() -> None:
    """(Σ p_k B_k) A₀ = Σ p_k B_k A₀[:r_k], with unequal ranks (FFA-LoRA)."""
    run = federation(
        Everything(), aggregator=ZeroPad(), dispatcher=Truncate(), fleet=ranked(1, 3, 4), cohort=3, trains="B"
    )
    backend = FakeBackend(run.fleet, SPEC)
    (report,) = federate(START, run, backend)
    updates = [backend.trained(task) for task in backend.calls[0]]
    total = sum(update.num_examples for update in updates)
    for name, pair in report.state.adapter.pairs.items():
        deltas = [update.num_examples / total * dense(update.adapter.pairs[name]) for update in updates]
        np.testing.assert_allclose(dense(pair), sum(deltas), rtol=1e-5, atol=1e-6)


def dense(pair: LoraPair) -> Any:
    return pair.scale * pair.B.double().numpy() @ pair.A.double().numpy()


@STEPS
@pytest.mark.parametrize("shares", ["A", "B", "both"])
def test_a_server_of_a_network_keeps_nothing_of_its_clients_and_shares_the_same(
    shares: Factors, optimizer: ServerOptimizer
) -> None:
    """It sends a head once to each client; of what is its client's own it reads what it has itself."""

    def as_read(updates: list[ClientUpdate]) -> list[ClientUpdate]:
        """What is not shared stands as the server sent it: `backends.wire`."""
        found = []
        for update in updates:
            (task,) = (task for task in backend.calls[-1] if task.client == update.client)
            assert task.private
            sent = trained_part(task.adapter, task.trained, SPEC, task.cut).pairs
            pairs = dict(update.adapter.pairs)
            for name, pair in pairs.items():
                if shares != "both":
                    pairs[name] = replace(pair, B=sent[name].B) if shares == "A" else replace(pair, A=sent[name].A)
            found.append(replace(update, adapter=Adapter(pairs, task.adapter.head)))
        return found

    run = federation(RandomRanks(), "local", optimizer, Truncate(), cohort=3, rounds=5, shares=shares, max_norm="auto")
    backend = FakeBackend(FLEET, SPEC, as_read)
    met: set[int] = set()
    simulated = federate(START, run, FakeBackend(FLEET, SPEC))
    for one, other in zip(simulated, federate(START, replace(run, simulated=False), backend), strict=True):
        assert bits(one.state.adapter.tensors()) == bits(other.state.adapter.tensors())
        assert one.counted.updated == other.counted.updated
        assert (one.uplink_bytes, one.downlink_bytes) == (other.uplink_bytes, other.downlink_bytes)
        assert one.state.norms == other.state.norms
        assert other.state.kept == {}
        for client in other.counted.updated:
            assert other.state.kept_versions[client] == other.round
        versions = {task.client: task.kept_version for task in backend.calls[-1]}
        assert {client for client, version in versions.items() if version is None} == versions.keys() - met
        met |= set(other.counted.updated)
        if shares != "both":
            assert other.diagnostics is not None
            assert other.diagnostics.aggregation_error is None, "a factor of each product is not there"


@STEPS
@pytest.mark.parametrize("allocator", [RandomLayers(), RandomRanks()], ids=repr)
@pytest.mark.parametrize(("shares", "keeps"), [("A", "B"), ("B", "A")])
def test_the_factor_that_is_not_shared_stays_with_its_client(
    shares: Factors, keeps: str, allocator: Allocator, optimizer: ServerOptimizer
) -> None:
    """FedSA-LoRA shares A. Layers, components and dispatched shapes change from round to round."""
    fleet = fleet_of(Budget(1, 2), Budget(2, (4, 1, 3)), Budget(3))
    run = federation(
        allocator, optimizer=optimizer, dispatcher=Truncate(), fleet=fleet, cohort=2, rounds=8, shares=shares
    )
    backend = FakeBackend(fleet, SPEC)
    own: dict[int, dict[str, Tensor]] = {}
    before, came_back = START.adapter, 0
    for report in federate(START, run, backend):
        assert not report.counted.rejected
        assert factors_of(report.state.adapter, keeps) == factors_of(START.adapter, keeps)
        assert factors_of(report.state.adapter, shares) != factors_of(before, shares)
        for task in backend.calls[-1]:
            came_back += task.client in own
            mine = own.setdefault(task.client, {n: t.clone() for n, t in START.adapter.tensors().items()})
            update = backend.trained(task)
            values = 0
            for module in SPEC.modules:
                name, rows = f"{module.name}.lora_{keeps}", torch.tensor(task.trained[module.layer])
                values += int(rows.sum()) * (5 if shares == "A" else module.d_out)
                got = task.adapter.tensors()[name]
                sent = rows if rows.any() else ~rows
                assert torch.equal(got, mine[name][sent] if keeps == "A" else mine[name][:, sent])
                if rows.any():
                    trained = update.adapter.pairs[module.name]
                    if keeps == "A":
                        mine[name][rows] = trained.A
                    else:
                        mine[name][:, rows] = trained.B
            assert report.counted.uplink_bytes[task.client] == 4 * (values + 8)
        for client, tensors in report.state.private.items():
            assert bits(tensors) == bits({name: own[client][name] for name in tensors})
            whole = with_private(report.state.adapter, tensors)  # as it is evaluated and exported
            assert {name: t.shape for name, t in whole.tensors().items()} == {
                name: t.shape for name, t in START.adapter.tensors().items()
            }
        before = report.state.adapter
    assert came_back > 5
