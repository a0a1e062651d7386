"""A task is made when it is sent: not before, and not at all for a client that is not reached."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from factories import FakeBackend, method_of, random_adapter, task_for, tiny_spec
from fake_grid import FakeGrid
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from hellora.backends.flower import FlowerBackend
from hellora.backends.records import hello_of, note
from hellora.backends.roster import Roster
from hellora.core.exchange import ClientFailure, ClientTask, TrainSettings
from hellora.core.state import ServerState
from hellora.core.types import ClientProfile
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.everything import Everything
from hellora.methods.dispatchers.whole import Whole
from hellora.server.backend import Order
from hellora.server.federation import Federation
from hellora.server.outbox import Outbox
from hellora.server.rounds import federate
from hellora.server.simulation import turnout

SPEC = tiny_spec()
ADAPTER = random_adapter(SPEC, 0)
ROW = np.ones((SPEC.num_layers, SPEC.max_rank), dtype=bool)


def unmade(client: int) -> Order:
    def make() -> ClientTask:
        raise AssertionError(f"the task of client {client} was made")

    return Order(client, make)


def test_no_task_is_made_for_who_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = tuple(ClientProfile(i, 5, availability=float(i % 2)) for i in range(6))
    made: list[int] = []
    make = Outbox.make

    def noted(outbox: Outbox, client: ClientProfile, row: Any) -> ClientTask:
        made.append(client.id)
        return make(outbox, client, row)

    monkeypatch.setattr(Outbox, "make", noted)
    method = method_of(Everything(), Whole(), ParticipantMean())
    run = Federation(SPEC, fleet, method, 1, 6, 0, TrainSettings())
    (report,) = federate(ServerState(0, ADAPTER), run, FakeBackend(fleet, SPEC))
    assert report.counted.missing == dict.fromkeys((0, 2, 4), "not available")
    assert made == [1, 3, 5], "each once"


def test_nor_for_who_would_be_too_late() -> None:
    orders = [unmade(client) for client in range(5)]
    seconds = {0: 3.0, 1: 1.0, 2: 99.0, 3: 2.0, 4: 0.5}
    available = {0: True, 1: True, 2: True, 3: True, 4: False}
    found = turnout(orders, available, seconds, cohort=2, deadline=10.0)
    assert [order.client for order in found.awaited] == [1, 3]
    assert sorted(failure.client for failure in found.missing) == [0, 2, 4]


def test_flower_makes_one_message_at_a_time() -> None:
    """And none for a client that is not connected."""
    events: list[tuple[str, int]] = []

    class Noting(FakeGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            sent = list(messages)
            events.extend(("sent", m.metadata.dst_node_id) for m in sent if m.metadata.message_type == "train")
            return super().push_messages(sent)

    app = ClientApp()

    @app.query("join")
    def join(message: Message, context: Context) -> Message:
        return Message(note({"name": context.node_config["name"]}), reply_to=message)

    @app.train()
    def train(message: Message, _: Context) -> Message:
        return Message(note({"failure": "nothing learned"}), reply_to=message)

    def order(client: int) -> Order:
        def make() -> ClientTask:
            events.append(("made", client))
            return task_for(client, ADAPTER, ROW)

        return Order(client, make)

    grid = Noting({10: {"name": "a"}, 11: {"name": "b"}, 13: {"name": "d"}}, app)
    fleet = tuple(ClientProfile(client, 4) for client in range(4))
    backend = FlowerBackend(Roster(grid, hello_of("{}"), lambda _: None), ["a", "b", "c", "d"], fleet, SPEC, "{}")
    found = {answer.client: answer for answer in backend.train([order(0), order(1), unmade(2), order(3)])}
    assert events == [("made", 0), ("sent", 10), ("made", 1), ("sent", 11), ("made", 3), ("sent", 13)]
    assert found[2] == ClientFailure(2, "missing", "not connected")
    assert all(found[client] == ClientFailure(client, "missing", "nothing learned") for client in (0, 1, 3))
