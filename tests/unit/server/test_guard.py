"""What one client can do to a round: nothing beyond its share, whatever it sends."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from factories import Answer, FakeBackend, bits, fleet_of, method_of, random_adapter, state_bits, tiny_spec

from hellora.core.errors import RunError
from hellora.core.exchange import ClientUpdate, TrainSettings
from hellora.core.robust import bounded_weights, median, quantile
from hellora.core.state import RoundReport, ServerState
from hellora.core.types import Adapter
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.everything import Everything
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.server_optimizers.average import Average
from hellora.server.federation import Federation
from hellora.server.guard import not_finite, remembered, too_far
from hellora.server.rounds import Accept, federate

SPEC = tiny_spec()
START = ServerState(0, random_adapter(SPEC, seed=1000))
FLEET = fleet_of(3, 3, 3, 3)  # ids 10, 13, 16, 19
Spoil = Callable[[list[ClientUpdate]], list[Answer]]


def federation(lr: float = 1.0, **changes: Any) -> Federation:
    method = method_of(Everything(), Whole(), ParticipantMean(), server_optimizer=Average(lr=lr))
    return replace(Federation(SPEC, FLEET, method, rounds=1, cohort=4, seed=7, train=TrainSettings()), **changes)


def reports_of(
    run: Federation, spoil: Spoil = list, state: ServerState = START, accept: Accept = lambda _: ""
) -> list[RoundReport]:
    return list(federate(state, run, FakeBackend(FLEET, SPEC, spoil), accept=accept))


def at_place(place: int, change: Callable[[ClientUpdate], ClientUpdate]) -> Spoil:
    """Let the client at this place of the cohort say something else."""
    return lambda updates: [change(update) if i == place else update for i, update in enumerate(updates)]


def with_head(value: float) -> Callable[[ClientUpdate], ClientUpdate]:
    """Let the head be one number throughout."""

    def changed(update: ClientUpdate) -> ClientUpdate:
        head = {name: torch.full_like(tensor, value) for name, tensor in update.adapter.head.items()}
        return replace(update, adapter=Adapter(update.adapter.pairs, head))

    return changed


def without_place(place: int) -> Spoil:
    return lambda updates: [update for i, update in enumerate(updates) if i != place]


HUGE = 3e38  # finite; a quarter of it times 8 is not


def test_an_update_that_makes_the_aggregate_infinite_is_rejected_and_the_round_counts_without_it() -> None:
    run = federation(lr=8.0)
    (report,) = reports_of(run, at_place(1, with_head(HUGE)))
    assert list(report.counted.rejected) == [13]
    said = report.counted.rejected[13]
    assert said.startswith("with what participant_mean makes of round 0 head.")
    assert "is not finite, and its delta has a norm of " in said
    assert report.counted.updated == (10, 16, 19)
    assert len(report.attempts) == 1
    (alone,) = reports_of(run, without_place(1))
    assert state_bits(report.state) == state_bits(alone.state)


def test_an_update_that_spoils_the_evaluation_is_rejected() -> None:
    def accept(state: ServerState) -> str:
        return "the loss on test examples is nan" if float(state.adapter.head["bias"].abs().max()) > 1e6 else ""

    (report,) = reports_of(federation(), at_place(3, with_head(1e9)), accept=accept)
    assert report.counted.rejected[19].startswith(
        "with what participant_mean makes of round 0 the loss on test examples is nan, and its delta has a norm of "
    )
    assert state_bits(report.state) == state_bits(reports_of(federation(), without_place(3))[0].state)


def test_where_nobody_stands_out_the_attempt_fails_and_the_run_stops_with_what_is_known() -> None:
    run = federation(attempts=2)
    with pytest.raises(RunError) as caught:
        reports_of(run, accept=lambda _: "the loss on test examples is nan")
    said = str(caught.value)
    assert "round 0 had 0 usable updates" in said
    assert "in each of 2 attempts" in said
    assert (
        "with what participant_mean makes of round 0 the loss on test examples is nan, and no update stands out" in said
    )
    assert "the largest deltas have norms of" in said
    assert "of client " in said


def test_too_few_are_left_without_it() -> None:
    with pytest.raises(RunError, match="round 0 had 3 usable updates, min_clients is 4"):
        reports_of(federation(lr=8.0, min_clients=4), at_place(1, with_head(HUGE)))


def test_nan_is_a_score_that_nobody_knows_and_nothing_else() -> None:
    nan = torch.tensor([1.0, math.nan])
    assert not not_finite(replace(START, strategies={"allocator/scores": nan}))
    velocity = replace(START, strategies={"server_optimizer/block.0": nan})
    assert not_finite(velocity) == "server_optimizer/block.0 is not finite"


# ------------------------------------------------------------------------------------------------------------ the norm


def test_by_itself_the_norm_is_bounded_by_the_rounds_median_at_first() -> None:
    run = federation(max_norm="auto")
    (report,) = reports_of(run, at_place(0, with_head(1000.0)))
    assert "guard.max_norm = 'auto' allows" in report.counted.rejected[10]
    assert "10 times the median of the round" in report.counted.rejected[10]
    (usual,) = reports_of(run)
    assert not usual.counted.rejected
    assert len(usual.state.norms["both"]) == 4
    assert report.state.norms["both"] == usual.state.norms["both"][1:], "what did not count is not remembered"


def test_later_it_is_bounded_by_earlier_rounds_even_where_most_of_a_cohort_lies() -> None:
    run = federation(max_norm="auto", rounds=2, min_clients=1)
    (first,) = reports_of(replace(run, rounds=1))

    def lie(updates: list[ClientUpdate]) -> list[Answer]:
        return [with_head(1000.0)(update) if i else update for i, update in enumerate(updates)]

    (second,) = reports_of(run, lie, state=first.state)
    assert list(second.counted.rejected) == [13, 16, 19]
    assert "10 times the median of earlier rounds" in second.counted.rejected[13]
    assert len(second.state.norms["both"]) == 5


def test_norms_are_held_against_others_of_the_same_factors() -> None:
    state = replace(START, norms={"A": (1.0, 1.0)})
    assert remembered(state, "B", {3: 100.0}) == {"A": (1.0, 1.0), "B": (100.0,)}
    assert remembered(state, "A", {3: 2.0}) == {"A": (1.0, 1.0, 2.0)}
    assert remembered(state, "A", {}) == {"A": (1.0, 1.0)}
    assert len(remembered(replace(START, norms={"A": (1.0,) * 1000}), "A", {3: 2.0})["A"]) == 1000


@pytest.mark.parametrize(
    ("norms", "earlier", "far"),
    [
        ({1: 1.0, 2: 10.0}, (), []),
        ({1: 1.0, 2: 10.1}, (), [2]),
        ({1: 5.0, 2: 5.0, 3: 51.0}, (1.0, 100.0, 2.0), [1, 2, 3][2:]),  # the median is 2, so 20 are allowed
        ({1: 21.0, 2: 20.0}, (1.0, 100.0, 2.0), [1]),
        ({1: 7.0}, (0.0, 0.0), []),  # nobody has moved yet
        ({}, (), []),
    ],
)
def test_too_far_by_hand(norms: dict[int, float], earlier: Sequence[float], far: list[int]) -> None:
    assert list(too_far(norms, earlier)) == far


# ---------------------------------------------------------------------------------------------------------- the weight


@pytest.mark.parametrize("claimed", [2**40, 10**9])
def test_an_example_count_of_two_to_the_forty_weighs_ten_medians_where_the_server_does_not_know_better(
    claimed: int,
) -> None:
    """Of 5, 12, 19 and the claim the lower median is 12, so the claim counts as 120."""
    unknown = tuple(replace(profile, num_examples=0) for profile in FLEET)
    run = federation(max_weight=10.0, fleet=unknown)
    (report,) = reports_of(run, at_place(3, lambda update: replace(update, num_examples=claimed)))
    (same,) = reports_of(run, at_place(3, lambda update: replace(update, num_examples=120)))
    assert bits(report.state.adapter.tensors()) == bits(same.state.adapter.tensors())
    assert report.diagnostics == same.diagnostics
    assert report.client_metrics[19]["examples"] == claimed, "what it said stays on record"
    (taken,) = reports_of(replace(run, max_weight=None), at_place(3, lambda u: replace(u, num_examples=claimed)))
    own = FakeBackend(FLEET, SPEC)
    list(federate(START, run, own))
    last = own.trained(own.calls[0][3]).adapter.head["bias"]
    assert torch.allclose(taken.state.adapter.head["bias"], last), "without a guard it has the adapter to itself"


def test_who_weighs_no_more_than_ten_medians_weighs_what_it_has() -> None:
    guarded, free = (reports_of(federation(max_weight=most))[0] for most in (10.0, None))
    assert state_bits(guarded.state) == state_bits(free.state)


def test_tokens_are_bounded_likewise() -> None:
    update = ClientUpdate(0, 1, 3, START.adapter, num_tokens=700)
    assert update.weight == 700
    assert replace(update, most_weight=50.0).weight == 50


def test_quantiles_and_weights_by_hand() -> None:
    assert quantile([1e300, 1.0], 0.99) == 1.0
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.75) == 3.0
    assert quantile([4.0], 0.5) == 4.0
    assert median([1.0, 2.0, 3.0, 4.0]) == 2.0
    assert bounded_weights({1: 1.0, 2: 2.0, 3: 99.0}, 4.0) == {1: 1.0, 2: 2.0, 3: 8.0}
    assert bounded_weights({1: 1.0, 2: 1e300}, None) == {1: 1.0, 2: 1e300}
    assert bounded_weights({}, 4.0) == {}
