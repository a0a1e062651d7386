"""Power-of-choice: candidates by their data, the largest losses among them, everybody once before anybody twice."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch
from factories import FakeBackend, method_of, random_adapter, state_bits, tiny_spec

from hellora.core.errors import InputError
from hellora.core.exchange import ClientTask, ClientUpdate, TrainSettings
from hellora.core.state import ServerState, select
from hellora.core.types import ClientProfile
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.everything import Everything
from hellora.methods.context import RoundContext
from hellora.methods.demands import LOSS_REPORTED
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.local_training.local_loss import LocalLoss
from hellora.methods.samplers.power_of_choice import PowerOfChoice
from hellora.record.checkpoint import load_state, save_state
from hellora.server.federation import Federation
from hellora.server.rounds import federate

ROUNDS = 3000


def fleet(*sizes: int) -> tuple[ClientProfile, ...]:
    return tuple(ClientProfile(10 + 3 * i, size) for i, size in enumerate(sizes))


def context_of(able: Sequence[ClientProfile], asked: int, round: int = 0) -> RoundContext:
    return RoundContext(round, ROUNDS, 0, tiny_spec(), tuple(able), able=tuple(able), asked=asked)


def losses(values: Mapping[int, float]) -> dict[str, torch.Tensor]:
    return {str(client): torch.tensor(loss, dtype=torch.float64) for client, loss in values.items()}


def ids(cohort: Sequence[ClientProfile]) -> list[int]:
    return [client.id for client in cohort]


def test_of_all_as_candidates_those_with_the_largest_losses_are_asked() -> None:
    able = fleet(5, 5, 5, 5)
    context = replace(context_of(able, 2), state=losses({10: 0.5, 13: 2.0, 16: 0.1, 19: 1.5}))
    assert ids(PowerOfChoice(4).sample(context)[0]) == [13, 19]


def test_who_has_told_no_loss_comes_first() -> None:
    able = fleet(5, 5, 5, 5)
    context = replace(context_of(able, 2), state=losses({10: 9.0, 13: 2.0, 16: 0.1}))
    assert ids(PowerOfChoice(4).sample(context)[0]) == [10, 19]


def test_the_last_reports_replace_what_was_known_and_are_kept() -> None:
    able = fleet(5, 5, 5)
    told = {13: {"local_loss/loss": torch.tensor(0.25, dtype=torch.float64)}}
    before = losses({10: 1.0, 13: 2.0, 16: 0.5})
    cohort, state = PowerOfChoice(3).sample(replace(context_of(able, 1), state=before, reports=told))
    assert ids(cohort) == [10]
    assert {client: loss.item() for client, loss in state.items()} == {"10": 1.0, "13": 0.25, "16": 0.5}
    assert before["13"].item() == 2.0


def test_candidates_are_drawn_by_their_data() -> None:
    """One is asked of two candidates; client 19 has the largest loss, so it is asked whenever it is a candidate."""
    able, sizes = fleet(8, 4, 2, 1), (8.0, 4.0, 2.0, 1.0)
    known = losses({10: 0.1, 13: 0.2, 16: 0.3, 19: 0.4})
    found = dict.fromkeys(ids(able), 0)
    for round in range(ROUNDS):
        (client,) = PowerOfChoice(2).sample(replace(context_of(able, 1, round), state=known))[0]
        found[client.id] += 1
    expected = dict.fromkeys(found, 0.0)
    for first, second in permutations(range(4), 2):
        probability = sizes[first] / sum(sizes) * sizes[second] / (sum(sizes) - sizes[first])
        expected[able[max(first, second)].id] += probability  # losses grow with the id
    for client, count in found.items():
        assert count / ROUNDS == pytest.approx(expected[client], abs=0.04)  # 4 standard errors


def test_sizes_that_nobody_knows_are_equal() -> None:
    able = fleet(0, 0, 0)
    asked = [ids(PowerOfChoice(1).sample(context_of(able, 1, round))[0])[0] for round in range(600)]
    assert {client: pytest.approx(asked.count(client) / 600, abs=0.08) for client in ids(able)} == dict.fromkeys(
        ids(able), 1 / 3
    )


def test_a_huge_client_is_no_candidate_more_often_than_it_may_weigh() -> None:
    able = fleet(1, 1, 10**9)
    bounded = [
        PowerOfChoice(1).sample(replace(context_of(able, 1, round), max_weight=2.0))[0][0].id for round in range(600)
    ]
    assert bounded.count(16) / 600 == pytest.approx(0.5, abs=0.08)


def test_fewer_candidates_than_are_asked_are_refused() -> None:
    with pytest.raises(InputError, match=r"method\.candidates = 2 is less than the 3 clients that a round asks: raise"):
        PowerOfChoice(2).sample(context_of(fleet(5, 5, 5, 5), 3))
    assert len(PowerOfChoice(2).sample(context_of(fleet(5, 5), 3))[0]) == 2, "there are no more clients"
    with pytest.raises(ValueError, match="candidates must be at least 1, not 0"):
        PowerOfChoice(0)


class Telling(FakeBackend):
    """Clients whose loss is a number of their own."""

    def trained(self, task: ClientTask) -> ClientUpdate:
        loss = torch.tensor(float(task.client), dtype=torch.float64)
        head = dict(sorted(task.adapter.head.items()))  # what is drawn must not depend on their order
        update = super().trained(replace(task, adapter=replace(task.adapter, head=head)))
        return replace(update, report={"local_loss/loss": loss})


def test_everybody_is_asked_once_and_then_the_largest_losses_and_a_resume_changes_nothing(tmp_path: Path) -> None:
    able = fleet(5, 6, 7, 8, 9, 10)
    method = method_of(
        Everything(), Whole(), ParticipantMean(), sampler=PowerOfChoice(6), local_training=(LocalLoss(),)
    )
    run = Federation(tiny_spec(), able, method, rounds=5, cohort=2, seed=1, train=TrainSettings())
    reports = list(federate(ServerState(0, random_adapter(tiny_spec(), 0)), run, Telling(able, tiny_spec())))
    asked = [report.counted.cohort for report in reports]
    assert sorted(client for cohort in asked[:3] for client in cohort) == ids(able)
    assert asked[3:] == [(22, 25), (22, 25)]
    known = select(reports[3].state.strategies, "sampler")
    assert {client: loss.item() for client, loss in known.items()} == {str(client): client for client in ids(able)}
    save_state(tmp_path, reports[1].state, {})
    loaded = load_state(tmp_path)
    assert loaded is not None
    *_, last = federate(loaded[0], run, Telling(able, tiny_spec()))
    assert state_bits(last.state) == state_bits(reports[-1].state)


def test_it_needs_losses_and_brings_the_rule_that_reports_them() -> None:
    assert PowerOfChoice().demands.needs == {LOSS_REPORTED}
    assert PowerOfChoice().demands.brings == ("local_loss",)
