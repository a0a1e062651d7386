"""Simulated devices, with numbers worked by hand: who is there, how long each takes, who is left behind."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from factories import FakeBackend, fleet_of, method_of, orders_of, random_adapter, state_bits, task_for, tiny_spec

from hellora.budgets.cost import Cost
from hellora.budgets.planner import Estimate, Planner
from hellora.core.errors import InputError, RunError
from hellora.core.exchange import Policy, TrainSettings
from hellora.core.state import RoundReport, ServerState
from hellora.core.types import Budget, ClientProfile, Ranks
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.everything import Everything
from hellora.methods.dispatchers.truncate import Truncate
from hellora.record.round_line import Measured, round_line
from hellora.server.backend import Order
from hellora.server.federation import Federation
from hellora.server.rounds import federate, sample
from hellora.server.simulation import Turnout, in_seconds, is_available, turnout

SPEC = tiny_spec()
START = ServerState(0, random_adapter(SPEC, seed=1))
NOBODY = np.zeros((SPEC.num_layers, SPEC.max_rank), dtype=bool)


@dataclass(frozen=True, eq=False)
class FixedPlanner(Planner):
    """Training takes 60 operations per rank component and example, and fits every budget."""

    def estimate(self, client: ClientProfile, ranks: Ranks) -> Estimate:
        operations = 60.0 * ranks.sum() * client.num_examples
        return Estimate(
            Policy(), Cost(1000, operations, 0), None if client.speed is None else operations / client.speed
        )

    def fits(self, client: ClientProfile, ranks: Ranks) -> bool:
        return True

    def trains(self, client: ClientProfile) -> bool:
        return True


PLANNER = FixedPlanner(model=None, train=TrainSettings())  # type: ignore[arg-type]
# Ids 10, 13, 16, 19 with 5, 12, 19, 26 examples, of ranks 1 to 4. Every layer and component has 19 numbers, the head 8.
#   id   messages, each way       training                      seconds
#   10   4 (19·3·1 + 8) =  260     60·3·1· 5 =    900             520/10 +    900/100 =  61
#   13   4 (19·3·2 + 8) =  488     60·3·2·12 =  4,320             976/10 +  4,320/100 = 140.8
#   16   4 (19·3·3 + 8) =  716     60·3·3·19 = 10,260            1432/10 + 10,260/100 = 245.8
#   19   4 (19·3·4 + 8) =  944     60·3·4·26 = 18,720            1888/10 + 18,720/100 = 376
DEVICES = tuple(replace(p, speed=100.0, link=10.0) for p in fleet_of(*(Budget(rank=rank) for rank in (1, 2, 3, 4))))
SECONDS = {10: 61.0, 13: 140.8, 16: 245.8, 19: 376.0}


def federation(**changes: Any) -> Federation:
    method = method_of(Everything(), Truncate(), ParticipantMean())
    run = Federation(SPEC, DEVICES, method, rounds=3, cohort=4, seed=7, train=TrainSettings(), planner=PLANNER)
    return replace(run, **changes)


def reports_of(run: Federation, state: ServerState = START, backend: FakeBackend | None = None) -> list[RoundReport]:
    return list(federate(state, run, backend or FakeBackend(run.fleet, SPEC)))


def cohort_of(run: Federation, round: int) -> tuple[ClientProfile, ...]:
    state = replace(START, round=round)
    return sample(run, run.context(state), state)[0].cohort


def lines_of(reports: Sequence[RoundReport], before: Any = None) -> list[dict[str, Any]]:
    lines = []
    for report in reports:
        before = round_line(report, Measured(), 0.0, before)
        lines.append(before)
    return lines


def test_a_line_says_in_how_many_modules_something_was_measured_and_null_where_nothing_was() -> None:
    (on, *_), (off, *_) = (lines_of(reports_of(federation(diagnostics=measured))) for measured in (True, False))
    assert on["measured_modules"] == {"aggregation_error": [6, 6], "energy": [6, 6]}
    assert on["aggregation_error"] > 0
    assert len(on["energy"]) == SPEC.max_rank
    nothing = {"aggregation_error": None, "energy": None, "measured_modules": None}
    moved = [{name for name in metrics if name.startswith("delta_")} for metrics in on["clients"].values()]
    assert moved == [{"delta_norm", "delta_cosine"}] * len(on["updated"])
    on["clients"] = {c: {n: v for n, v in m.items() if not n.startswith("delta_")} for c, m in on["clients"].items()}
    assert off == {**on, **nothing}


# ----------------------------------------------------------------------------------------------------------- who counts


def orders(*clients: int) -> list[Order]:
    return orders_of(task_for(client, START.adapter, NOBODY) for client in clients)


def turnout_of(
    seconds: dict[int, float] | None, cohort: int, deadline: float | None = None, away: Sequence[int] = ()
) -> Turnout:
    clients = seconds or dict.fromkeys((1, 2, 3), 0.0)
    return turnout(orders(*clients), {client: client not in away for client in clients}, seconds, cohort, deadline)


def summary_of(found: Turnout) -> tuple[list[int], dict[int, str], float | None]:
    assert {failure.kind for failure in found.missing} <= {"missing"}
    return [order.client for order in found.awaited], {f.client: f.reason for f in found.missing}, found.lasted


TIMES = {1: 30.0, 2: 95.0, 3: 20.0, 4: 30.0, 5: 61.0}


def test_a_round_lasts_until_the_last_of_the_cohort() -> None:
    assert summary_of(turnout_of(TIMES, cohort=5)) == ([1, 2, 3, 4, 5], {}, 95.0)


def test_who_is_too_late_for_the_deadline_is_missing_and_waited_for() -> None:
    late = {5: "deadline: would take 61 s of 60 s", 2: "deadline: would take 95 s of 60 s"}
    assert summary_of(turnout_of(TIMES, cohort=5, deadline=60.0)) == ([1, 3, 4], late, 60.0)
    assert summary_of(turnout_of(TIMES, cohort=5, deadline=61.0)) == (
        [1, 3, 4, 5],
        {2: "deadline: would take 95 s of 61 s"},
        61.0,
    )
    assert summary_of(turnout_of(TIMES, cohort=5, deadline=100.0)) == ([1, 2, 3, 4, 5], {}, 95.0)


def test_the_first_of_those_asked_count_and_of_two_at_the_same_time_the_lower_id() -> None:
    behind = {
        4: "not among the first 2: would take 30 s",
        5: "not among the first 2: would take 61 s",
        2: "not among the first 2: would take 95 s",
    }
    assert summary_of(turnout_of(TIMES, cohort=2)) == ([1, 3], behind, 30.0)


def test_nobody_waits_for_the_deadline_once_the_cohort_is_complete() -> None:
    awaited, missing, lasted = summary_of(turnout_of(TIMES, cohort=2, deadline=60.0))
    assert (awaited, lasted) == ([1, 3], 30.0)
    assert missing[2] == "deadline: would take 95 s of 60 s"
    assert missing[4] == "not among the first 2: would take 30 s"


def test_who_cannot_be_reached_is_neither_asked_nor_waited_for() -> None:
    found = turnout_of(TIMES, cohort=5, away=(2, 3))
    assert summary_of(found) == ([1, 4, 5], dict.fromkeys((2, 3), "not available"), 61.0)
    assert [order.client for order in found.reached] == [1, 4, 5]
    assert summary_of(turnout_of(TIMES, cohort=2, away=(3,)))[0] == [1, 4]


def test_without_times_only_availability_plays_a_part() -> None:
    assert summary_of(turnout_of(None, cohort=1, away=(2,))) == ([1, 3], {2: "not available"}, None)
    assert turnout([], {}, {}, cohort=1, deadline=60.0).lasted == 0.0  # nobody has anything to train


def test_times_in_words() -> None:
    assert [in_seconds(t) for t in (0.0004, 0.25, 61.04, 999.0, 12345.6)] == [
        "0.0004 s",
        "0.25 s",
        "61 s",
        "999 s",
        "12346 s",
    ]


# --------------------------------------------------------------------------------------------------------- availability


def test_clients_are_there_as_often_as_they_say() -> None:
    client = ClientProfile(3, 1, availability=0.7)
    there = [is_available(client, round, seed=0) for round in range(4000)]
    assert np.mean(there) == pytest.approx(0.7, abs=0.03)
    assert there == [is_available(client, round, seed=0) for round in range(4000)]
    assert there != [is_available(client, round, seed=1) for round in range(4000)]
    other = [is_available(ClientProfile(4, 1, availability=0.7), round, seed=0) for round in range(4000)]
    assert np.mean(np.array(there) & np.array(other)) == pytest.approx(0.49, abs=0.03)  # each on its own
    assert all(is_available(ClientProfile(3, 1), round, seed=0) for round in range(100))


def test_who_is_away_gets_nothing_and_answers_nothing() -> None:
    """Without speeds and links, and so without a clock."""
    fleet = tuple(replace(p, speed=None, link=None, availability=0.6) for p in DEVICES)
    run = federation(fleet=fleet, planner=None, rounds=12, attempts=9)
    backend = FakeBackend(fleet, SPEC)
    away = 0
    for report in reports_of(run, backend=backend):
        for attempt in report.attempts:
            there = {p.id for p in fleet if is_available(p, report.round, run.seed)}
            assert dict(attempt.missing) == dict.fromkeys(sorted({p.id for p in fleet} - there), "not available")
            assert set(attempt.updated) == attempt.downlink_bytes.keys() == attempt.uplink_bytes.keys() == there
            assert attempt.simulated_seconds is None
            away += len(attempt.missing)
        assert "simulated_seconds" not in next(iter(report.client_metrics.values()))
        assert report.simulated_seconds is None
    assert 10 < away < 30  # 12 rounds × 4 clients × 0.4 = 19
    assert {line["simulated_clock"] for line in lines_of(reports_of(run))} == {None}


# ------------------------------------------------------------------------------------------------------------ the clock


def test_a_clients_seconds_are_download_training_and_upload() -> None:
    reports = reports_of(federation())
    for report in reports:
        assert {c: m["simulated_seconds"] for c, m in report.client_metrics.items()} == pytest.approx(SECONDS)
        assert report.simulated_seconds == pytest.approx(376.0)
    lines = lines_of(reports)
    assert [line["simulated_seconds"] for line in lines] == [376.0] * 3
    assert [line["simulated_clock"] for line in lines] == [376.0, 752.0, 1128.0]


def test_bytes_that_do_not_travel_take_no_time() -> None:
    """FedSA-LoRA with local heads: A alone travels, 10 of the 19 numbers; client 10: 2·4·10·3/10 + 9 s. Its first head,
    8 numbers, comes once.
    """
    method = method_of(Everything(), Truncate(), ParticipantMean(), head="local", shares="A")
    first, second = reports_of(federation(method=method, rounds=2))
    assert first.client_metrics[10]["simulated_seconds"] == pytest.approx(24 + 3.2 + 9)
    assert second.client_metrics[10]["simulated_seconds"] == pytest.approx(24 + 9)


def test_one_factor_goes_up_and_both_come_down() -> None:
    """FFA-LoRA: B alone is trained and sent, 9 of the 19 numbers; client 10: (260 + 4 (9·3 + 8))/10 + 9 s."""
    method = method_of(Everything(), Truncate(), ParticipantMean(), trains="B")
    report = reports_of(federation(method=method, rounds=1))[0]
    assert report.client_metrics[10]["simulated_seconds"] == pytest.approx(26 + 14 + 9)


def test_the_clock_changes_no_result() -> None:
    timed, bare = reports_of(federation()), reports_of(federation(planner=None))
    assert [state_bits(report.state) for report in timed] == [state_bits(report.state) for report in bare]


def test_a_deadline_leaves_the_slow_behind_untrained() -> None:
    run = federation(deadline=200.0)
    backend = FakeBackend(run.fleet, SPEC)
    for report in reports_of(run, backend=backend):
        attempt = report.counted
        assert attempt.updated == (10, 13)
        assert attempt.missing == {
            16: "deadline: would take 246 s of 200 s",
            19: "deadline: would take 376 s of 200 s",
        }
        assert attempt.downlink_bytes == {10: 260, 13: 488, 16: 716, 19: 944}  # they got it, in vain
        assert attempt.uplink_bytes == {10: 260, 13: 488}
        assert report.simulated_seconds == 200.0
        assert [task.client for task in backend.calls[report.round]] == [10, 13]


def test_over_selection_counts_the_first() -> None:
    run = federation(cohort=2, spares=1)
    for report in reports_of(run):
        asked = tuple(client.id for client in cohort_of(run, report.round))
        assert len(asked) == 3
        first, second, last = sorted(asked, key=SECONDS.__getitem__)
        assert report.counted.cohort == asked
        assert set(report.counted.updated) == {first, second}
        assert report.counted.missing == {last: f"not among the first 2: would take {SECONDS[last]:.3g} s"}
        assert report.simulated_seconds == pytest.approx(SECONDS[second])


def test_every_attempt_takes_its_time() -> None:
    """Nobody answers within 50 s; with 100 s only client 10 does, and a cohort of one need not have it."""
    with pytest.raises(RunError, match=r"round 0 had 0 usable updates.*deadline: would take 61 s of 50 s"):
        reports_of(federation(deadline=50.0))
    reports = reports_of(federation(deadline=100.0, cohort=1, attempts=40, rounds=6))
    assert max(len(report.attempts) for report in reports) > 1
    for report in reports:
        assert report.counted.cohort == (10,)
        assert report.simulated_seconds == pytest.approx(100.0 * (len(report.attempts) - 1) + 61.0)


def test_a_resumed_clock_goes_on_where_it_was() -> None:
    fleet = tuple(replace(p, availability=0.7) for p in DEVICES)
    run = federation(fleet=fleet, deadline=300.0, cohort=2, spares=1, rounds=8, attempts=9)
    reports = reports_of(run)
    lines = lines_of(reports)
    assert len({line["simulated_seconds"] for line in lines}) > 2
    for done in (1, 4, 7):
        resumed = reports_of(run, reports[done - 1].state)
        assert [state_bits(r.state) for r in resumed] == [state_bits(r.state) for r in reports[done:]]
        assert lines_of(resumed, lines[done - 1]) == lines[done:]


def test_a_deadline_without_times_is_refused() -> None:
    for changes in ({"planner": None}, {"fleet": fleet_of(1, 2)}):
        for limits in ({"deadline": 5.0}, {"spares": 1}):
            with pytest.raises(InputError, match="need a planner, and the speed and link of every client"):
                federation(**changes, **limits)
