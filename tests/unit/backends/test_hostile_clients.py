"""200 malformed answers through Flower's own records: none counts, none stops the round, and all are on record."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from factories import bits, gathered, orders_of, random_adapter, task_for, tiny_spec, update_of
from fake_grid import FakeGrid
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from hellora.backends.flower import FlowerBackend
from hellora.backends.records import from_records, hello_of, note, to_records
from hellora.backends.roster import Roster
from hellora.backends.wire import pack_answer, unpack_task
from hellora.core.exchange import ClientTask, WireFormat
from hellora.core.types import Budget, ClientProfile

SPEC = tiny_spec()
ROW = np.ones((SPEC.num_layers, SPEC.max_rank), dtype=bool)
ADAPTER, TRAINED = random_adapter(SPEC, 0), random_adapter(SPEC, 1)
FLEET = tuple(ClientProfile(client, 4, Budget()) for client in range(2))
Attack = Callable[[RecordDict, np.random.Generator], RecordDict]


def tasks(round: int) -> list[ClientTask]:
    return [replace(task_for(client, ADAPTER, ROW), round=round, seed=round) for client in (0, 1)]


def on_tensors(change: Callable[[dict[str, Array], str, np.random.Generator], None]) -> Attack:
    """Changes the arrays; is told the name of one."""

    def attack(records: RecordDict, rng: np.random.Generator) -> RecordDict:
        arrays = dict(records.array_records["tensors"].items())
        change(arrays, str(rng.choice(sorted(arrays))), rng)
        return RecordDict({"message": records.config_records["message"], "tensors": ArrayRecord(arrays)})

    return attack


def on_fields(change: Callable[[dict[str, object], np.random.Generator], object]) -> Attack:
    """Changes the fields, or puts something in their place."""

    def attack(records: RecordDict, rng: np.random.Generator) -> RecordDict:
        fields = json.loads(str(records.config_records["message"]["fields"]))
        changed = change(fields, rng)
        text = json.dumps(fields if changed is None else changed)
        return RecordDict({"message": ConfigRecord({"fields": text}), "tensors": records.array_records["tensors"]})

    return attack


def renamed(arrays: dict[str, Array], name: str, rng: np.random.Generator) -> None:
    new = rng.choice(
        ["x", "", "__metadata__", f"{name}.more", "prototype.2.x", "prototype.x.y", "head.extra", "é" * 99]
    )
    arrays[str(new)] = arrays.pop(name)


def as_other_dtype(arrays: dict[str, Array], name: str, rng: np.random.Generator) -> None:
    old = arrays[name]
    dtype = str(rng.choice(["F64", "F16", "I32", "BOOL", "float32", "", "F8_E4M3", "object"]))
    arrays[name] = Array(dtype, old.shape, old.stype, old.data)


def as_other_shape(arrays: dict[str, Array], name: str, rng: np.random.Generator) -> None:
    old = arrays[name]
    shapes = [(), (1,), (2**40, 2**40), (-1,), (*old.shape, 2), (0,), (old.shape[0] + 1, *old.shape[1:])]
    arrays[name] = Array(old.dtype, shapes[rng.integers(len(shapes))], old.stype, old.data)


def truncated(arrays: dict[str, Array], name: str, rng: np.random.Generator) -> None:
    old = arrays[name]
    arrays[name] = Array(old.dtype, old.shape, old.stype, old.data[: rng.integers(len(old.data))])


def not_finite(arrays: dict[str, Array], name: str, rng: np.random.Generator) -> None:
    """All of one tensor; in whatever format, its numbers or its scales."""
    for each in [name] if arrays[name].dtype == "F32" else sorted(arrays):
        old = arrays[each]
        value = {"F32": [np.nan, np.inf, -np.inf][rng.integers(3)]}.get(old.dtype)
        data = b"\xff" * len(old.data) if value is None else np.full(len(old.data) // 4, value, np.float32).tobytes()
        arrays[each] = Array(old.dtype, old.shape, old.stype, data)


def huge(arrays: dict[str, Array], name: str, _: np.random.Generator) -> None:
    arrays[name] = Array("F32", (2**20,), "safetensors", bytes(2**22))


def pickled(arrays: dict[str, Array], name: str, rng: np.random.Generator) -> None:
    old = arrays[name]
    arrays[name] = Array(old.dtype, old.shape, str(rng.choice(["numpy.ndarray", "pickle", "torch"])), old.data)


def absent(arrays: dict[str, Array], name: str, _: np.random.Generator) -> None:
    del arrays[name]


def one_field(fields: dict[str, object], rng: np.random.Generator) -> None:
    name = str(rng.choice(sorted(fields)))
    values: list[object] = [None, -1, 10**30, "text", [1], {"a": None}, True, -0.5, "\ud800"]
    if name == "delta":
        values = ["text"]  # true and false are both answers
    fields[name] = next(v for v in rng.permutation(np.array(values, dtype=object)) if v != fields[name])


def old_round(fields: dict[str, object], rng: np.random.Generator) -> None:
    fields["round"] = int(rng.integers(-5, 10_000)) * 2 + 100_001


def no_record(records: RecordDict, rng: np.random.Generator) -> RecordDict:
    kept = str(rng.choice(["message", "tensors", "none"]))
    every = {"message": records.config_records["message"], "tensors": records.array_records["tensors"]}
    return RecordDict({kept: every[kept]} if kept in every else {})


ATTACKS: dict[str, Attack] = {
    "renamed": on_tensors(renamed),
    "other dtype": on_tensors(as_other_dtype),
    "other shape": on_tensors(as_other_shape),
    "truncated": on_tensors(truncated),
    "not finite": on_tensors(not_finite),
    "huge": on_tensors(huge),
    "pickled": on_tensors(pickled),
    "absent": on_tensors(absent),
    "a field": on_fields(one_field),
    "old round": on_fields(old_round),
    "of another client": on_fields(lambda fields, _: fields.update(client=0)),
    "no fields": on_fields(lambda _, rng: [[], {}, 3, "fields", {"failure": 3}][rng.integers(5)]),
    "no record": no_record,
}


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8"])
def test_malformed_answers_never_count_and_stop_nothing(format: WireFormat) -> None:
    rounds = {"fp32": 200, "bf16": 65, "int8": 65}[format]
    attacks = list(ATTACKS.items())
    app = ClientApp()

    @app.query("join")
    def join(message: Message, context: Context) -> Message:
        return Message(note({"name": context.node_config["name"]}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        task = unpack_task(from_records(message.content))
        answer = to_records(pack_answer(update_of(task, TRAINED, SPEC), task, SPEC, format))
        if context.node_config["name"] == "bad":
            answer = attacks[task.round % len(attacks)][1](answer, np.random.default_rng(task.round))
        return Message(answer, reply_to=message)

    grid = FakeGrid({7: {"name": "good"}, 8: {"name": "bad"}}, app)
    roster = Roster(grid, hello_of("{}"), lambda _: None)
    backend = FlowerBackend(roster, ["good", "bad"], FLEET, SPEC, "of all", format, deadline=60.0)
    backend.questions.poll = 0.0
    for round in range(rounds):
        asked, what = tasks(round), attacks[round % len(attacks)][0]
        found = gathered(asked, backend.train(orders_of(asked)), SPEC, FLEET)
        assert [update.client for _, update in found.answers] == [0], (what, round)
        ((failure, reasons),) = [(failure, found.dropped.get(1)) for failure in found.failures]
        assert failure.client == 1
        assert failure.reason or reasons, what
        if format == "fp32":
            assert bits(found.answers[0][1].adapter.tensors()) == bits(TRAINED.tensors())
    assert not backend.awaited


def test_an_answer_that_comes_twice_counts_once() -> None:
    app = ClientApp()

    @app.query("join")
    def join(message: Message, _: Context) -> Message:
        return Message(note({"name": "good"}), reply_to=message)

    @app.train()
    def train(message: Message, _: Context) -> Message:
        task = unpack_task(from_records(message.content))
        return Message(to_records(pack_answer(update_of(task, TRAINED, SPEC), task, SPEC)), reply_to=message)

    grid = FakeGrid({7: {"name": "good"}}, app, spoil=lambda _, answer: [answer, answer])
    backend = FlowerBackend(Roster(grid, hello_of("{}"), lambda _: None), ["good"], FLEET[:1], SPEC, "of all")
    for round in range(3):
        asked = tasks(round)[:1]
        found = gathered(asked, backend.train(orders_of(asked)), SPEC, FLEET)
        assert (len(found.answers), found.failures, len(found.uplink_bytes)) == (1, [], 1)
