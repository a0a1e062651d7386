"""What every sampler in the folder must keep to, present and future."""

import random
from dataclasses import dataclass, replace

import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.torch
import torch
from factories import assert_is_a_strategy_file, bits, strategies, tiny_spec, variants
from hypothesis import given, settings

import hellora.methods.samplers
from hellora.core.types import Budget, ClientProfile
from hellora.methods.context import RoundContext
from hellora.methods.strategies import Sampler

laws = settings(derandomize=True, deadline=None, database=None, max_examples=60)
every_sampler = pytest.mark.parametrize("sampler", list(variants(hellora.methods.samplers, Sampler)), ids=repr)


@dataclass(frozen=True)
class Situation:
    fleet: tuple[ClientProfile, ...]  # by id
    asked: int
    round: int
    attempt: int
    seed: int

    def context(self) -> RoundContext:
        able = tuple(client for client in self.fleet if client.budget.trains(3, 4))
        return RoundContext(
            round=self.round,
            rounds=20,
            seed=self.seed,
            spec=tiny_spec(3, 4),
            fleet=self.fleet,
            able=able,
            asked=self.asked,
            attempt=self.attempt,
        )


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    ids = sorted(draw(st.sets(st.integers(0, 99), min_size=1, max_size=9)))
    fleet = [
        ClientProfile(i, draw(st.integers(1, 50)), Budget(draw(st.integers(0, 3))), None, None, draw(availabilities))
        for i in ids
    ]
    fleet[-1] = replace(fleet[-1], budget=Budget())  # somebody can train
    numbers = [draw(st.integers(low, high)) for low, high in ((1, 12), (0, 19), (0, 2), (0, 99))]
    return Situation(tuple(fleet), *numbers)


availabilities = st.floats(0.001, 1.0)


@every_sampler
def test_distinct_clients_that_can_train_by_id_as_many_as_asked(sampler: Sampler) -> None:
    @laws
    @given(situations())
    def law(situation: Situation) -> None:
        context = situation.context()
        cohort, state = sampler.sample(context)
        ids = [client.id for client in cohort]
        assert ids == sorted(set(ids))
        assert set(cohort) <= set(context.able)
        assert len(ids) == min(context.asked, len(context.able))
        assert all(isinstance(value, torch.Tensor) for value in state.values())
        everybody, _ = sampler.sample(replace(context, asked=len(context.able) + 1))
        assert everybody == context.able

    law()


@every_sampler
def test_same_seed_round_and_attempt_give_the_same_cohort_whatever_was_called_before(sampler: Sampler) -> None:
    @laws
    @given(situations(), situations())
    def law(situation: Situation, other: Situation) -> None:
        context = situation.context()
        first, first_state = sampler.sample(context)
        sampler.sample(other.context())
        np.random.random()  # noqa: NPY002  the global generators must not matter
        torch.rand(1)
        second, second_state = sampler.sample(situation.context())
        assert first == second
        assert bits(first_state) == bits(second_state)
        assert not context.state, "the context was changed"

    law()


@every_sampler
def test_the_order_of_the_fleet_is_irrelevant(sampler: Sampler) -> None:
    @laws
    @given(situations(), st.randoms(use_true_random=False))
    def law(situation: Situation, order: random.Random) -> None:
        context = situation.context()
        fleet = list(context.fleet)
        order.shuffle(fleet)
        assert sampler.sample(replace(context, fleet=tuple(fleet)))[0] == sampler.sample(context)[0]

    law()


@every_sampler
def test_rounds_attempts_and_seeds_draw_anew(sampler: Sampler) -> None:
    """Unless everybody is asked: of 28 pairs of 8 clients the same is not drawn again and again."""
    fleet = tuple(ClientProfile(i, 5) for i in range(8))
    start = Situation(fleet, 2, 0, 0, 0)
    for name in ("round", "attempt", "seed"):
        cohorts = {sampler.sample(replace(start, **{name: value}).context())[0] for value in range(12)}
        assert len(cohorts) > 4, name


@every_sampler
def test_state_goes_through_a_checkpoint(sampler: Sampler) -> None:
    @laws
    @given(situations())
    def law(situation: Situation) -> None:
        _, state = sampler.sample(situation.context())
        loaded = safetensors.torch.load(safetensors.torch.save(dict(state)))  # refuses tensors that share storage
        assert bits(loaded) == bits(state)
        later = replace(situation, round=situation.round + 1).context()
        assert sampler.sample(replace(later, state=state))[0] == sampler.sample(replace(later, state=loaded))[0]

    law()


def test_one_documented_frozen_dataclass_per_module() -> None:
    for module, cls in strategies(hellora.methods.samplers, Sampler):
        assert_is_a_strategy_file(module, cls)
