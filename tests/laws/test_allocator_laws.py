"""What every allocator in the folder must keep to, present and future."""

import dataclasses
import random

import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.torch
import torch
from factories import MemoryLaw, assert_is_a_strategy_file, bits, context_of, fleet_of, strategies, variants
from hypothesis import given, settings

import hellora.methods.allocators
from hellora.core.errors import InputError
from hellora.core.state import StrategyState
from hellora.core.types import Allocation, Budget
from hellora.methods.context import RoundContext
from hellora.methods.strategies import Allocator

laws = settings(derandomize=True, deadline=None, database=None, max_examples=20)
every_allocator = pytest.mark.parametrize("allocator", list(variants(hellora.methods.allocators, Allocator)), ids=repr)


@dataclasses.dataclass(frozen=True)
class Situation:
    """A context in plain numbers, so that a test can build it in another order."""

    num_layers: int
    max_rank: int
    budgets: list[Budget]  # per client of the fleet
    chosen: list[int]  # positions of the cohort in the fleet
    reported: list[int]  # positions of the clients with reports, of scores and of a rank
    round: int
    seed: int
    full_client: bool  # somebody can train everything

    def context(self, order: random.Random | None = None) -> RoundContext:
        """The round; given `order`, with the cohort, fleet and reports shuffled."""
        fleet = list(fleet_of(*self.budgets))
        cohort = [fleet[i] for i in self.chosen]
        reporters = [fleet[i].id for i in self.reported]
        if order is not None:
            for items in (fleet, cohort, reporters):
                order.shuffle(items)
        reports = {client: self.report(client) for client in reporters}
        return context_of(
            fleet,
            num_layers=self.num_layers,
            max_rank=self.max_rank,
            round=self.round,
            rounds=20,
            seed=self.seed,
            cohort=cohort,
            layer_scores=lambda: np.random.default_rng(self.seed).random(self.num_layers),
            scores=reports,
            ranks={client: 1 + client % self.max_rank for client in reporters},
        )

    def report(self, client: int) -> torch.Tensor:
        scores = np.random.default_rng([self.seed, client]).random(self.num_layers)
        return torch.from_numpy(np.where(scores < 0.3, np.nan, scores))


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    full_client = draw(st.booleans())
    num_layers, max_rank = draw(st.integers(1, 13)), draw(st.integers(1, 6))
    rank = st.integers(0, max_rank + 2)
    ranks = st.one_of(st.none(), rank, st.lists(rank, min_size=num_layers, max_size=num_layers).map(tuple))
    layers = st.one_of(st.none(), st.integers(0, num_layers + 3))
    budgets = draw(st.lists(st.builds(Budget, layers, ranks), max_size=6))
    able = num_layers if full_client else draw(st.integers(1, num_layers))
    some_rank = st.none() if full_client else st.one_of(st.none(), st.integers(1, max_rank))
    budgets.append(Budget(able, draw(some_rank)))  # a fleet can train something
    positions = st.lists(st.integers(0, len(budgets) - 1), unique=True)
    chosen, reported = draw(positions), draw(positions)
    seed = draw(st.integers(0, 99))
    return Situation(num_layers, max_rank, budgets, chosen, reported, draw(st.integers(0, 19)), seed, full_client)


def allocated(
    allocator: Allocator, situation: Situation, context: RoundContext | None = None
) -> tuple[Allocation, StrategyState]:
    """What is allocated; nothing where the allocator refuses a fleet in which nobody can train everything."""
    context = context or situation.context()
    try:
        return allocator.allocate(context)
    except InputError:
        assert not situation.full_client
        return dataclasses.replace(context, cohort=()).allocation_of_ranks([]), {}


def check(allocation: Allocation, situation: Situation, context: RoundContext) -> None:
    """Every budget holds, and nothing but a fleet is refused."""
    if allocation.clients or not context.cohort or situation.full_client:
        allocation.check(context.cohort, context.spec)


def named(context: RoundContext) -> object:
    """The tensors of a context, comparable bit for bit."""
    return bits(context.state), {client: bits(told) for client, told in context.reports.items()}


@every_allocator
def test_within_every_budget(allocator: Allocator) -> None:
    @laws
    @given(situations())
    def law(situation: Situation) -> None:
        context = situation.context()
        allocation, state = allocated(allocator, situation, context)
        check(allocation, situation, context)
        assert all(isinstance(value, torch.Tensor) for value in state.values())

    law()


@every_allocator
def test_within_every_budget_in_bytes(allocator: Allocator) -> None:
    @laws
    @given(situations(), st.tuples(*[st.floats(0, 2)] * 3), st.lists(st.floats(0, 40), max_size=6))
    def law(situation: Situation, costs: tuple[float, float, float], limits: list[float]) -> None:
        context = situation.context()
        weak = [client.id for client in context.fleet][
            :-1
        ]  # the last one can afford all that its layers and ranks allow
        planner = MemoryLaw(*costs, limits=dict(zip(weak, limits, strict=False)))
        allocation, _ = allocated(allocator, situation, dataclasses.replace(context, planner=planner))
        check(allocation, situation, context)
        of = {client.id: client for client in context.cohort}
        assert all(planner.fits(of[c], ranks) for c, ranks in zip(allocation.clients, allocation.ranks, strict=True))

    law()


@every_allocator
def test_same_seed_and_round_give_the_same_mask_whatever_was_called_before(allocator: Allocator) -> None:
    @laws
    @given(situations(), situations())
    def law(situation: Situation, other: Situation) -> None:
        context = situation.context()
        before = named(context)
        first, first_state = allocated(allocator, situation, context)
        allocated(allocator, other)
        np.random.random()  # noqa: NPY002  the global generators must not matter
        torch.rand(1)
        second, second_state = allocated(allocator, situation, context)
        assert np.array_equal(first.mask, second.mask)
        assert bits(first_state) == bits(second_state)
        assert named(context) == before, "the context was changed"

    law()


@every_allocator
def test_reordering_clients_permutes_rows(allocator: Allocator) -> None:
    @laws
    @given(situations(), st.randoms(use_true_random=False))
    def law(situation: Situation, order: random.Random) -> None:
        one, one_state = allocated(allocator, situation)
        two, two_state = allocated(allocator, situation, situation.context(order))
        assert {c: one.row(c).tobytes() for c in one.clients} == {c: two.row(c).tobytes() for c in two.clients}
        assert bits(one_state) == bits(two_state)

    law()


@every_allocator
def test_state_goes_through_a_checkpoint(allocator: Allocator) -> None:
    @laws
    @given(situations())
    def law(situation: Situation) -> None:
        _, state = allocated(allocator, situation)
        loaded = safetensors.torch.load(safetensors.torch.save(dict(state)))  # refuses tensors that share storage
        assert bits(loaded) == bits(state)
        later = dataclasses.replace(situation, round=situation.round + 1).context()
        kept, _ = allocated(allocator, situation, dataclasses.replace(later, state=state))
        resumed, _ = allocated(allocator, situation, dataclasses.replace(later, state=loaded))
        assert np.array_equal(kept.mask, resumed.mask)

    law()


def test_one_documented_frozen_dataclass_per_module() -> None:
    for module, cls in strategies(hellora.methods.allocators, Allocator):
        assert_is_a_strategy_file(module, cls)
