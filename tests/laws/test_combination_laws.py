"""Every combination of strategies that is not refused runs two rounds and resumes, bit for bit."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from factories import FakeBackend, Lent, fleet_of, random_adapter, state_bits, strategies, tiny_spec, variants
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor

import hellora.methods.aggregators
import hellora.methods.allocators
import hellora.methods.dispatchers
import hellora.methods.local_training
import hellora.methods.samplers
import hellora.methods.server_optimizers
from hellora.core.errors import InputError
from hellora.core.exchange import ClientTask, ClientUpdate, HeadPolicy, TensorSpec, TrainSettings
from hellora.core.seeds import seed_for
from hellora.core.state import ServerState
from hellora.core.types import Budget
from hellora.experiments import registry
from hellora.experiments.contradictions import TRAINS
from hellora.methods.context import LentModel
from hellora.methods.demands import (
    ALL_SHARED,
    CLASSES,
    HEAD,
    LASTING_COMPONENTS,
    OWN_COMPONENTS,
    PLAIN_SGD,
    PLANNER,
    PROBABILITIES,
    PROXY_DATA,
    PUBLIC_DATA,
    REPEATED_BATCHES,
    SCORED_MODEL,
    SHARED_MODEL,
    TARGETS,
    Demands,
    check_demands,
)
from hellora.methods.samplers.uniform import Uniform
from hellora.methods.strategies import (
    Aggregator,
    Allocator,
    Dispatcher,
    LocalTraining,
    Method,
    Sampler,
    ServerOptimizer,
    Strategy,
    Trains,
)
from hellora.record.checkpoint import load_state, save_state
from hellora.server.federation import Federation, lent_to
from hellora.server.rounds import federate

SPEC = tiny_spec()
START = ServerState(0, random_adapter(SPEC, seed=1000))
FLEET = fleet_of(Budget(1), Budget(2, 2), Budget(3, 3), Budget(), Budget(rank=(1, 0, 4)))
SCORES = np.array([3.0, 1.0, 2.0])


def one_of_each(package: Any, kind: type) -> list[Any]:
    return [cls() for _, cls in strategies(package, kind)]


SAMPLERS = one_of_each(hellora.methods.samplers, Sampler)
ALLOCATORS = one_of_each(hellora.methods.allocators, Allocator)
DISPATCHERS = one_of_each(hellora.methods.dispatchers, Dispatcher)
RULES = one_of_each(hellora.methods.local_training, LocalTraining)
AGGREGATORS = one_of_each(hellora.methods.aggregators, Aggregator)
OPTIMIZERS = one_of_each(hellora.methods.server_optimizers, ServerOptimizer)


class Talkative(FakeBackend):
    """Clients that report and keep whatever was declared, within its bounds, drawn from the task's seed."""

    def trained(self, task: ClientTask) -> ClientUpdate:
        declared = task.declared
        report = {name: drawn(spec, seed_for(task.seed, name)) for name, spec in declared.report.items()}
        kept = {
            name: drawn(spec, seed_for(task.seed, "kept", name)) + task.kept.get(name, 0)
            for name, spec in declared.kept.items()
        }
        head = dict(sorted(task.adapter.head.items()))  # what is drawn must not depend on their order
        update = super().trained(replace(task, adapter=replace(task.adapter, head=head)))
        return replace(update, report=report, kept=kept)


def drawn(spec: TensorSpec, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    if not spec.dtype.is_floating_point:
        return torch.randint(int(spec.low), int(spec.high) + 1, spec.shape, generator=rng, dtype=spec.dtype)
    values = torch.rand(spec.shape, generator=rng, dtype=spec.dtype)
    return values.clamp(max(spec.low, -1e30), min(spec.high, 1e30))


def parties(method: Method) -> Iterator[tuple[str, Demands]]:
    """Who needs and promises what: the strategies, and an experiment in which all data are there."""
    for strategy in method.strategies:
        yield strategy.name, strategy.demands
    promised = {PLANNER, CLASSES, TARGETS, PROBABILITIES, HEAD, PROXY_DATA, PUBLIC_DATA, PLAIN_SGD, REPEATED_BATCHES}
    promised |= TRAINS[method.trains]
    promised |= set() if method.personal else {SHARED_MODEL, SCORED_MODEL}
    promised |= {ALL_SHARED} if method.shares == "both" else set()
    yield "the experiment", Demands(promises=frozenset(promised))
    if method.shares != "both":
        yield "method.shares", Demands(needs=frozenset({LASTING_COMPONENTS, OWN_COMPONENTS}))


def is_refused(method: Method) -> bool:
    try:
        check_demands(parties(method))
    except InputError:
        return True
    return False


def method_of(
    sampler: Sampler,
    allocator: Allocator,
    dispatcher: Dispatcher,
    rule: LocalTraining,
    aggregator: Aggregator,
    optimizer: ServerOptimizer,
    head: HeadPolicy = "aggregate",
    trains: Trains = "both",
    shares: Any = "both",
) -> Method:
    """With the rules that sampler and allocator bring."""
    names = dict.fromkeys(name for each in (sampler, allocator) for name in each.demands.brings)
    brought = [registry.find("local_training", name)() for name in names]
    rules = (rule, *(each for each in brought if each.name != rule.name))
    return Method(sampler, allocator, dispatcher, rules, aggregator, optimizer, head, trains, shares)


def usual(**parts: Strategy) -> Method:
    """A method of these parts and the plainest others."""
    plain: Mapping[str, Any] = {
        "sampler": Uniform(),
        "allocator": registry.find("allocator", "everything")(),
        "dispatcher": registry.find("dispatcher", "whole")(),
        "rule": registry.find("local_training", "plain")(),
        "aggregator": registry.find("aggregator", "participant_mean")(),
        "optimizer": registry.find("server_optimizer", "average")(),
    }
    return method_of(**{**plain, **parts})


FITTING = [
    parts
    for parts in product(DISPATCHERS, RULES, AGGREGATORS, OPTIMIZERS)
    if any(
        not is_refused(method_of(Uniform(), allocator, *parts, trains=trains))
        for trains in ("both", "B")
        for allocator in (registry.find("allocator", name)() for name in ("everything", "self_pruning"))
    )
]


def test_every_strategy_is_in_some_combination_that_is_not_refused() -> None:
    for place, every in enumerate((DISPATCHERS, RULES, AGGREGATORS, OPTIMIZERS)):
        assert {parts[place] for parts in FITTING} == set(every)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@given(
    st.sampled_from(SAMPLERS),
    st.sampled_from(ALLOCATORS),
    st.sampled_from(FITTING),
    st.sampled_from(["aggregate", "frozen", "local"]),
    st.sampled_from(["both", "both", "B", "alternate"]),
    st.sampled_from(["both", "both", "A"]),
)
@settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
)
def test_what_is_not_refused_runs_two_rounds_and_resumes(
    folder: Path,
    sampler: Sampler,
    allocator: Allocator,
    fitting: tuple[Dispatcher, LocalTraining, Aggregator, ServerOptimizer],
    head: HeadPolicy,
    trains: Trains,
    shares: Any,
) -> None:
    method = method_of(sampler, allocator, *fitting, head, trains, shares)
    assume(not is_refused(method))
    assume(trains != "B" or shares == "both")  # refused besides: nothing would be shared
    runs_and_resumes(method, folder)


def runs_and_resumes(method: Method, folder: Path) -> None:
    run = Federation(SPEC, FLEET, method, rounds=2, cohort=3, seed=7, train=TrainSettings(optimizer="sgd"))
    lent = Lent(lambda: SCORES)
    first, second = federate(START, run, Talkative(FLEET, SPEC), lent)
    for report in (first, second):
        assert not report.counted.rejected
        assert not report.counted.missing
    save_state(folder, first.state, {})
    loaded = load_state(folder)
    assert loaded is not None
    assert state_bits(loaded[0]) == state_bits(first.state)
    (resumed,) = federate(loaded[0], run, Talkative(FLEET, SPEC), lent)
    assert state_bits(resumed.state) == state_bits(second.state)


@pytest.mark.parametrize(
    "strategy",
    [
        *variants(hellora.methods.samplers, Sampler),
        *variants(hellora.methods.allocators, Allocator),
        *variants(hellora.methods.dispatchers, Dispatcher),
        *variants(hellora.methods.local_training, LocalTraining),
        *variants(hellora.methods.aggregators, Aggregator),
        *variants(hellora.methods.server_optimizers, ServerOptimizer),
    ],
    ids=repr,
)
def test_a_model_is_lent_only_to_who_says_that_it_needs_the_data(strategy: Strategy) -> None:
    lent: LentModel = Lent(lambda: SCORES)
    needs = strategy.demands.needs & {PROXY_DATA, PUBLIC_DATA}
    assert lent_to(strategy, lent) is (lent if needs else None)


@pytest.mark.parametrize(
    "parts",
    [
        *[{"sampler": sampler} for sampler in SAMPLERS],
        *[{"allocator": allocator} for allocator in ALLOCATORS],
        *[{"dispatcher": dispatcher} for dispatcher in DISPATCHERS],
        *[{"aggregator": aggregator} for aggregator in AGGREGATORS],
    ],
    ids=repr,
)
def test_who_does_not_need_a_model_runs_without_one(parts: Mapping[str, Strategy]) -> None:
    (strategy,) = parts.values()
    if strategy.demands.needs & {PROXY_DATA, PUBLIC_DATA} or is_refused(method := usual(**parts)):
        return
    run = Federation(SPEC, FLEET, method, rounds=2, cohort=3, seed=7, train=TrainSettings())
    assert len(list(federate(START, run, Talkative(FLEET, SPEC), None))) == 2
