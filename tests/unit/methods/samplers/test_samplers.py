"""uniform and by_availability: how often each client is asked, against exact probabilities."""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
from factories import fleet_of, tiny_spec

from hellora.core.types import ClientProfile
from hellora.methods.context import RoundContext
from hellora.methods.samplers.by_availability import ByAvailability
from hellora.methods.samplers.uniform import Uniform
from hellora.methods.strategies import Sampler

ROUNDS = 3000
TOLERANCE = 0.04  # 4 standard errors of a frequency over 3000 rounds, at most


def fleet(*availabilities: float) -> tuple[ClientProfile, ...]:
    return tuple(ClientProfile(10 + 3 * i, 5, availability=a) for i, a in enumerate(availabilities))


def frequencies(sampler: Sampler, able: Sequence[ClientProfile], asked: int, seed: int = 0) -> list[float]:
    """How often each client is asked."""
    counts = dict.fromkeys((client.id for client in able), 0)
    for round in range(ROUNDS):
        context = RoundContext(round, ROUNDS, seed, tiny_spec(), tuple(able), able=tuple(able), asked=asked)
        for client in sampler.sample(context)[0]:
            counts[client.id] += 1
    return [count / ROUNDS for count in counts.values()]


def exact(weights: Sequence[float], asked: int) -> list[float]:
    """The probability of each to be among the first `asked` that are drawn one after the other."""
    found = [0.0] * len(weights)
    for order in permutations(range(len(weights)), asked):
        left, probability = sum(weights), 1.0
        for i in order:
            probability *= weights[i] / left
            left -= weights[i]
        for i in order:
            found[i] += probability
    return found


@pytest.mark.parametrize("asked", [1, 2, 3])
def test_clients_are_drawn_in_proportion_to_their_availability(asked: int) -> None:
    weights = (0.9, 0.3, 0.6, 0.1, 0.6)
    expected = exact(weights, asked)
    assert sum(expected) == pytest.approx(asked)
    np.testing.assert_allclose(frequencies(ByAvailability(), fleet(*weights), asked), expected, atol=TOLERANCE)


@pytest.mark.parametrize("sampler", [Uniform(), ByAvailability()], ids=repr)
@pytest.mark.parametrize("availability", [1.0, 0.2])
def test_equal_availabilities_give_every_client_the_same_frequency(sampler: Sampler, availability: float) -> None:
    found = frequencies(sampler, fleet(*[availability] * 5), asked=2)
    np.testing.assert_allclose(found, 2 / 5, atol=TOLERANCE)


def test_uniform_does_not_ask_how_often_a_client_is_there() -> None:
    np.testing.assert_allclose(frequencies(Uniform(), fleet(1.0, 0.1, 0.5, 0.2), asked=1), 1 / 4, atol=TOLERANCE)


def test_only_who_can_train_is_drawn() -> None:
    everyone = fleet_of(0, 1, 2, 0, 3)
    able = tuple(client for client in everyone if client.budget.layers)
    for sampler in (Uniform(), ByAvailability()):
        seen = set()
        for round in range(50):
            context = RoundContext(round, 50, 0, tiny_spec(), everyone, able=able, asked=2)
            seen |= {client.id for client in sampler.sample(context)[0]}
        assert seen == {client.id for client in able}


def test_neither_remembers_or_needs_anything() -> None:
    for sampler in (Uniform(), ByAvailability()):
        context = RoundContext(0, 1, 0, tiny_spec(), fleet(1.0), able=fleet(1.0), asked=1)
        assert sampler.sample(context)[1] == {}
        assert not sampler.demands.needs
