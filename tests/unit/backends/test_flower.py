"""The server's side of a Flower grid: who is asked, what counts, what is late, and what is refused."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from factories import gathered, method_of, orders_of, random_adapter, task_for, tiny_spec, update_of
from fake_grid import FakeGrid
from flwr.app import Array, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from hellora.backends.flower import FlowerBackend
from hellora.backends.records import from_records, hello_of, note, to_records
from hellora.backends.roster import Roster, ask_all
from hellora.backends.wire import pack_answer, unpack_task
from hellora.core.errors import RunError
from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate, WireFormat
from hellora.core.types import AdapterSpec, Budget, ClientProfile, ModuleSpec
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.everything import Everything
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.local import Shapes
from hellora.methods.sharing import crossing

SPEC = tiny_spec()
ADAPTER = random_adapter(SPEC, 0)
ROW = np.ones((SPEC.num_layers, SPEC.max_rank), dtype=bool)
NAMES = ["a", "b", "c"]
FLEET = tuple(ClientProfile(client, 4, Budget()) for client in range(3))


def one_more(data: bytes) -> bytes:
    """The answer of a client that adds 1 to all that it trains."""
    task = unpack_task(data)
    tensors = random_adapter(SPEC, 5)
    return pack_answer(update_of(task, tensors, SPEC), task, SPEC)


def app_that(train: Callable[[Message, Context], RecordDict]) -> ClientApp:
    app = ClientApp()

    @app.query("join")
    def join(message: Message, context: Context) -> Message:
        return Message(note({"name": context.node_config["name"]}), reply_to=message)

    @app.train()
    def _(message: Message, context: Context) -> Message:
        return Message(train(message, context), reply_to=message)

    return app


GOOD = app_that(lambda message, _: to_records(one_more(from_records(message.content))))


def grid_of(*names: str, app: ClientApp = GOOD, **settings: Any) -> FakeGrid:
    return FakeGrid({100 - i: {"name": name} for i, name in enumerate(names)}, app, **settings)


def tasks(round: int = 0, clients: Sequence[int] = (0, 1, 2)) -> list[ClientTask]:
    return [replace(task_for(client, ADAPTER, ROW), round=round) for client in clients]


def backend_on(grid: FakeGrid, **settings: Any) -> FlowerBackend:
    roster = Roster(grid, hello_of("{}"), lambda _: None)
    return FlowerBackend(roster, NAMES, FLEET, SPEC, "of all", **settings)


def answers(backend: FlowerBackend, asked: Sequence[ClientTask]) -> dict[int, ClientUpdate | ClientFailure]:
    found = list(backend.train(orders_of(asked)))
    assert sorted(answer.client for answer in found) == sorted(task.client for task in asked)
    return {answer.client: answer for answer in found}


def test_each_client_gets_its_own_task_whatever_its_node_is_called() -> None:
    grid = grid_of("c", "a", "b")
    found = answers(backend_on(grid), tasks())
    assert all(isinstance(answer, ClientUpdate) for answer in found.values())
    trained = [message for message in grid.asked if message.metadata.message_type == "train"]
    who = {grid.configs[m.metadata.dst_node_id]["name"]: unpack_task(from_records(m.content)).client for m in trained}
    assert who == {"a": 0, "b": 1, "c": 2}
    assert {m.metadata.group_id for m in trained} == {"0"}


def test_bytes_on_the_wire_are_counted() -> None:
    found = answers(backend_on(grid_of(*NAMES)), tasks())
    for answer in found.values():
        assert isinstance(answer, ClientUpdate)
        assert 0 <= answer.metrics["sent_bytes"] - answer.adapter.num_bytes < 1500
        assert 0 <= answer.metrics["received_bytes"] - ADAPTER.num_bytes < 1500


@pytest.mark.parametrize("format", get_args(WireFormat))
@pytest.mark.parametrize("layers", [1, 3, 4])
def test_the_bytes_of_each_client_are_those_that_were_planned(format: WireFormat, layers: int) -> None:
    """Within 2 % and an envelope of 4 KB; with modules as in a BERT."""
    names = [f"encoder.layer.{i}.attention.self.{which}" for i in range(4) for which in ("query", "value")]
    modules = tuple(ModuleSpec(name, i // 2, 768, 768) for i, name in enumerate(names))
    spec = AdapterSpec(modules, tuple(f"encoder.layer.{i}" for i in range(4)), max_rank=16, scale=2.0)
    adapter, method = random_adapter(spec, 0), method_of(Everything(), Whole(), ParticipantMean())
    row = np.zeros((4, 16), dtype=bool)
    row[4 - layers :] = True

    def train(message: Message, _: Context) -> RecordDict:
        task = unpack_task(from_records(message.content))
        return to_records(pack_answer(update_of(task, adapter, spec), task, spec, format))

    roster = Roster(grid_of("a", app=app_that(train)), hello_of("{}"), lambda _: None)
    task = task_for(0, adapter, row)
    (answer,) = FlowerBackend(roster, NAMES, FLEET, spec, "{}", format).train(orders_of([task]))
    assert isinstance(answer, ClientUpdate)
    shapes = Shapes(spec, row, "both", {name: tuple(tensor.shape) for name, tensor in adapter.head.items()})
    planned = crossing(adapter, Whole().sends(row, spec), shapes, method, method.declares(shapes), format)
    for predicted, measured in (
        (planned.down, answer.metrics["received_bytes"]),
        (planned.up, answer.metrics["sent_bytes"]),
    ):
        assert 0 <= measured - predicted < 0.02 * predicted + 4096


def test_who_is_not_connected_is_missing_and_counts_when_it_comes_back() -> None:
    grid = grid_of("a", "b")
    backend = backend_on(grid, deadline=20.0)
    assert answers(backend, tasks())[2] == ClientFailure(2, "missing", "not connected")
    grid.configs[7] = {"name": "c"}
    assert isinstance(answers(backend, tasks(1))[2], ClientUpdate)
    del grid.configs[7]
    assert answers(backend, tasks(2))[2] == ClientFailure(2, "missing", "not connected")
    grid.configs[8] = {"name": "c"}  # with another key
    assert isinstance(answers(backend, tasks(3))[2], ClientUpdate)


def test_a_second_node_with_a_taken_name_is_left_out() -> None:
    lines: list[str] = []
    grid = grid_of("a", "a", "b")
    roster = Roster(grid, hello_of("{}"), lines.append)
    roster.refresh(10.0)
    assert roster.nodes == {"a": 99, "b": 98}
    assert lines == ["node 100 did not join: it says that it is a, who is here already"]


@pytest.mark.parametrize("fields", [{}, {"name": 3}, {"failure": "no such file"}])
def test_a_node_that_does_not_say_who_it_is_is_asked_again_later(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hellora.backends.roster.FIRST_WAIT", 0.3)
    lines: list[str] = []
    grid = grid_of("a", spoil=lambda asked, _: Message(note(fields), reply_to=asked))
    roster = Roster(grid, hello_of("{}"), lines.append)
    for pause in (0.0, 0.0, 0.4):  # the second comes too early
        time.sleep(pause)
        roster.refresh(10.0)
    assert not roster.nodes
    assert (len(lines), len(grid.asked)) == (1, 2)  # the reason is logged once


def test_gathering_ends_with_an_error_when_the_time_is_up() -> None:
    lines: list[str] = []
    roster = Roster(grid_of("a"), hello_of("{}"), lines.append)
    with pytest.raises(RunError, match=r"only 1 clients joined within 0\.5 s"):
        roster.gather(lambda: len(roster.nodes) == 2, 0.5)
    assert lines == ["waiting for clients; here: a"]


def late_until(held: dict[str, Message], client: int, round: int) -> Callable[[Message, Message], Message | None]:
    """Keeps back the answer of one client in one round, for the test to deliver."""

    def spoil(asked: Message, answer: Message) -> Message | None:
        if asked.metadata.message_type == "train":
            task = unpack_task(from_records(asked.content))
            if (task.client, task.round) == (client, round):
                held[asked.metadata.message_id] = answer
                return None
        return answer

    return spoil


def test_a_deadline_leaves_out_who_is_late_and_the_late_answer_never_counts() -> None:
    held: dict[str, Message] = {}
    grid = grid_of(*NAMES, spoil=late_until(held, client=1, round=0))
    backend = backend_on(grid, deadline=1.0)
    started = time.monotonic()
    assert answers(backend, tasks())[1] == ClientFailure(1, "missing", "no answer within 1 s")
    assert 1.0 <= time.monotonic() - started < 5.0
    grid.answers |= held  # now it answers
    time.sleep(1.0)
    found = list(backend.train(orders_of(tasks(1))))
    assert [(a.client, a.round) for a in found if isinstance(a, ClientUpdate) and a.round == 0] == [(1, 0)]
    counted = gathered(tasks(1), found, SPEC, FLEET)
    assert [update.round for _, update in counted.answers] == [1, 1, 1]
    assert not counted.failures


def test_the_first_answers_count_where_more_are_asked() -> None:
    held: dict[str, Message] = {}
    backend = backend_on(grid_of(*NAMES, spoil=late_until(held, client=0, round=0)), enough=2)
    found = answers(backend, tasks())
    assert found[0] == ClientFailure(0, "missing", "not among the first 2")


def test_an_error_of_flower_is_a_missing_client() -> None:
    def spoil(asked: Message, answer: Message) -> Message:
        if asked.metadata.message_type == "train" and asked.metadata.dst_node_id == 99:
            return Message(Error(3, "the node is\nunavailable"), reply_to=asked)
        return answer

    found = answers(backend_on(grid_of(*NAMES, spoil=spoil)), tasks())
    assert found[1] == ClientFailure(1, "missing", "the node is unavailable (code 3)")
    assert isinstance(found[0], ClientUpdate)


def test_a_trainer_that_is_gone_is_a_missing_client() -> None:
    app = app_that(lambda *_: note({"failure": "its trainer ended (EOFError)"}))
    assert answers(backend_on(grid_of("a", app=app)), tasks(clients=[0])) == {
        0: ClientFailure(0, "missing", "its trainer ended (EOFError)")
    }


def test_an_answer_in_the_name_of_another_does_not_count() -> None:
    def swapped(message: Message, _: Context) -> RecordDict:
        task = unpack_task(from_records(message.content))
        other = replace(task, client=2)
        return to_records(pack_answer(update_of(other, ADAPTER, SPEC), other, SPEC))

    found = answers(backend_on(grid_of("a", app=app_that(swapped))), tasks(clients=[0]))
    assert isinstance(found[0], ClientFailure)
    assert found[0].kind == "rejected"


def test_an_answer_that_is_far_too_large_is_not_even_read() -> None:
    def huge(message: Message, _: Context) -> RecordDict:
        records = to_records(one_more(from_records(message.content)))
        records.array_records["tensors"]["more"] = Array("F32", (1_000_000,), "safetensors", bytes(4_000_000))
        return records

    found = answers(backend_on(grid_of("a", app=app_that(huge))), tasks(clients=[0]))
    assert isinstance(found[0], ClientFailure)
    assert found[0].kind == "rejected"
    assert "bytes, at most" in found[0].reason


def test_a_grid_that_fails_stops_the_run_in_one_line() -> None:
    class Gone(FakeGrid):
        def pull_messages(self, message_ids: Any) -> Any:
            raise ConnectionError("refused")

    with pytest.raises(RunError, match=r"the SuperLink does not answer \(ConnectionError: refused\)"):
        ask_all(Gone({1: {"name": "a"}}, GOOD), {1: hello_of("{}")}, "query.join", 5.0)


def test_what_clients_write_is_no_command_for_a_terminal() -> None:
    written = "its data\x1b[2J is\r\n\x1b[92mINFO\x1b[0m: forged\u202e " + "x" * 9999
    app = app_that(lambda *_: note({"failure": written}))
    answer = answers(backend_on(grid_of("a", app=app)), tasks(clients=[0]))[0]
    assert isinstance(answer, ClientFailure)
    assert answer.reason.startswith("its data [2J is [92mINFO [0m: forged x")
    assert answer.reason.isprintable()
    assert len(answer.reason) < 510


def test_waiting_threads_end() -> None:
    before = threading.active_count()
    answers(backend_on(grid_of(*NAMES)), tasks())
    time.sleep(0.5)
    assert threading.active_count() <= before + 1
