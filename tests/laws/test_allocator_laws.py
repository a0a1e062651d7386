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
from hellora.core.types import Budget
from hellora.methods.allocators.exclusive import Exclusive
from hellora.methods.context import RoundContext
from hellora.methods.strategies import Allocator

laws = settings(derandomize=True, deadline=None, database=None, max_examples=40)
every_allocator = pytest.mark.parametrize("allocator", list(variants(hellora.methods.allocators, Allocator)), ids=repr)


@dataclasses.dataclass(frozen=True)
class Situation:
    """A view in plain numbers, so that a test can build it in another order."""

    num_layers: int
    max_rank: int
    budgets: list[Budget]  # per client of the fleet
    chosen: list[int]  # positions of the cohort in the fleet
    reported: list[int]  # positions of the clients with reports, of scores and of a rank
    round: int
    seed: int

    def view(self, order: random.Random | None = None) -> RoundContext:
        """The view; given `order`, with the cohort, fleet and reports shuffled."""
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
            reports=reports,
            reported_ranks={client: 1 + client % self.max_rank for client in reporters},
        )

    def report(self, client: int) -> torch.Tensor:
        scores = np.random.default_rng([self.seed, client]).random(self.num_layers)
        return torch.from_numpy(np.where(scores < 0.3, np.nan, scores))


@st.composite
def situations(draw: st.DrawFn, full_client: bool) -> Situation:
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
    return Situation(num_layers, max_rank, budgets, chosen, reported, draw(st.integers(0, 19)), seed)


def situations_for(allocator: Allocator) -> st.SearchStrategy[Situation]:
    return situations(full_client=isinstance(allocator, Exclusive))


@every_allocator
def test_within_every_budget(allocator: Allocator) -> None:
    @laws
    @given(situations_for(allocator))
    def law(situation: Situation) -> None:
        view = situation.view()
        allocation, memory = allocator.allocate(view)
        allocation.check(view.cohort, view.spec)
        assert all(isinstance(value, torch.Tensor) for value in memory.values())

    law()


@every_allocator
def test_within_every_budget_in_bytes(allocator: Allocator) -> None:
    @laws
    @given(situations_for(allocator), st.tuples(*[st.floats(0, 2)] * 3), st.lists(st.floats(0, 40), max_size=6))
    def law(situation: Situation, costs: tuple[float, float, float], limits: list[float]) -> None:
        view = situation.view()
        weak = [client.id for client in view.fleet][:-1]  # the last one can afford all that its layers and ranks allow
        planner = MemoryLaw(*costs, limits=dict(zip(weak, limits, strict=False)))
        allocation, _ = allocator.allocate(dataclasses.replace(view, planner=planner))
        allocation.check(view.cohort, view.spec)
        assert all(map(planner.fits, view.cohort, allocation.ranks))

    law()


@every_allocator
def test_same_seed_and_round_give_the_same_mask_whatever_was_called_before(allocator: Allocator) -> None:
    @laws
    @given(situations_for(allocator), situations_for(allocator))
    def law(situation: Situation, other: Situation) -> None:
        view = situation.view()
        before = bits(view.memory), bits(view.reports)
        first, first_memory = allocator.allocate(view)
        allocator.allocate(other.view())
        np.random.random()  # noqa: NPY002  the global generators must not matter
        torch.rand(1)
        second, second_memory = allocator.allocate(view)
        assert np.array_equal(first.mask, second.mask)
        assert bits(first_memory) == bits(second_memory)
        assert (bits(view.memory), bits(view.reports)) == before, "the view was changed"

    law()


@every_allocator
def test_reordering_clients_permutes_rows(allocator: Allocator) -> None:
    @laws
    @given(situations_for(allocator), st.randoms(use_true_random=False))
    def law(situation: Situation, order: random.Random) -> None:
        one, one_memory = allocator.allocate(situation.view())
        two, two_memory = allocator.allocate(situation.view(order))
        assert {c: one.row(c).tobytes() for c in one.clients} == {c: two.row(c).tobytes() for c in two.clients}
        assert bits(one_memory) == bits(two_memory)

    law()


@every_allocator
def test_memory_goes_through_a_checkpoint(allocator: Allocator) -> None:
    @laws
    @given(situations_for(allocator))
    def law(situation: Situation) -> None:
        _, memory = allocator.allocate(situation.view())
        loaded = safetensors.torch.load(safetensors.torch.save(dict(memory)))  # refuses tensors that share storage
        assert bits(loaded) == bits(memory)
        later = dataclasses.replace(situation, round=situation.round + 1).view()
        kept, _ = allocator.allocate(dataclasses.replace(later, memory=memory))
        resumed, _ = allocator.allocate(dataclasses.replace(later, memory=loaded))
        assert np.array_equal(kept.mask, resumed.mask)

    law()


def test_one_documented_frozen_dataclass_per_module() -> None:
    for module, cls in strategies(hellora.methods.allocators, Allocator):
        assert_is_a_strategy_file(module, cls)
