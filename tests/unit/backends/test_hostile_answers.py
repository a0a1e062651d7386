"""Whatever bytes a client sends: it is rejected, or they are an update that may count. Never another exception."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from factories import gathered, random_adapter, task_for, tiny_spec, update_of

from hellora.backends.wire import OVERHEAD, WireError, as_received, pack_answer, read_answer, unpack_answer
from hellora.core.codec import SCALES
from hellora.core.exchange import (
    ClientFailure,
    ClientTask,
    ClientUpdate,
    Declared,
    TensorSpec,
    WireFormat,
    problem_with_named,
)
from hellora.core.types import ClientProfile

SPEC = tiny_spec()
ROW = np.array([[True, False, True, False], [True] * 4, [False] * 4])
DECLARED = Declared(
    report={
        "layer_scores/scores": TensorSpec((3,), torch.float64, low=0.0, may_be_nan=True),
        "hetlora/rank": TensorSpec((), torch.int64, low=1, high=4, optional=True),
        "mine/flags": TensorSpec((2,), torch.bool),
    },
    kept={"mine/variate": TensorSpec((2, 3)), "mine/later": TensorSpec((2, 3), optional=True)},
)
TASK = replace(task_for(1, random_adapter(SPEC, 0), ROW), round=3, declared=DECLARED)
FLEET = (ClientProfile(1, 50), ClientProfile(2, 60))
FORMATS: list[WireFormat] = ["fp32", "bf16", "int8"]
JsonObject = dict[str, Any]


def honest(format: WireFormat) -> bytes:
    received = as_received(TASK, format)
    update = update_of(received, random_adapter(SPEC, 1), SPEC, num_examples=50)
    report = {
        "layer_scores/scores": torch.tensor([0.5, 1.0, torch.nan], dtype=torch.float64),
        "hetlora/rank": torch.tensor(2),
        "mine/flags": torch.tensor([True, False]),
    }
    kept = {"mine/variate": torch.rand(2, 3, generator=torch.Generator().manual_seed(2))}
    return pack_answer(replace(update, metrics={"loss": 1.0}, report=report, kept=kept), received, SPEC, format)


HONEST = {format: honest(format) for format in FORMATS}


def parts_of(data: bytes) -> tuple[JsonObject, JsonObject, bytes]:
    """The header of safetensors, our fields in it, and the numbers."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["fields"]), data[8 + length :]


def joined(header: Any, fields: Any, numbers: bytes) -> bytes:
    if fields is not None:
        header["__metadata__"] = {"fields": fields if isinstance(fields, str) else json.dumps(fields)}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + numbers


def outcome(data: bytes) -> tuple[ClientUpdate | None, str]:
    """What the server makes of it: the update that counts, or why none does. A failure is always the client's own."""
    answer = read_answer(data, TASK, SPEC)
    assert answer.client == TASK.client
    found = gathered([TASK], [answer], SPEC, FLEET)
    if found.answers:
        return found.answers[0][1], ""
    (failure,) = found.failures
    return None, failure.reason if failure.kind == "rejected" else str(found.dropped)


def with_fields(**changes: Any) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        header, fields, numbers = parts_of(data)
        return joined(header, {**fields, **changes}, numbers)

    return change


def without_field(name: str) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        header, fields, numbers = parts_of(data)
        del fields[name]
        return joined(header, fields, numbers)

    return change


def fields_are(value: Any) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        header, _, numbers = parts_of(data)
        return joined(header, value, numbers)

    return change


def renamed(new: Callable[[str], str]) -> Callable[[bytes], bytes]:
    """The first tensor of a LoRA pair under another name."""

    def change(data: bytes) -> bytes:
        header, fields, numbers = parts_of(data)
        old = next(name for name in header if name.endswith("lora_A"))
        header[new(old)] = header.pop(old)
        return joined(header, fields, numbers)

    return change


def entry(**changes: Any) -> Callable[[bytes], bytes]:
    """The header's entry of the first tensor of a LoRA pair changed."""

    def change(data: bytes) -> bytes:
        header, fields, numbers = parts_of(data)
        old = next(name for name in header if name.endswith("lora_A"))
        header[old] = {**header[old], **changes}
        return joined(header, fields, numbers)

    return change


SCORES, RANK, FLAGS, VARIATE = (
    "/report/layer_scores/scores",
    "/report/hetlora/rank",
    "/report/mine/flags",
    "/kept/mine/variate",
)


def without_tensor(name: str) -> Callable[[bytes], bytes]:
    """One tensor gone, and its bytes with it."""

    def change(data: bytes) -> bytes:
        header, fields, numbers = parts_of(data)
        start, end = header.pop(name)["data_offsets"]
        for each, found in header.items():
            if each != "__metadata__" and found["data_offsets"][0] >= end:
                found["data_offsets"] = [place - (end - start) for place in found["data_offsets"]]
        return joined(header, fields, numbers[:start] + numbers[end:])

    return change


def entry_of(old: str, name: str | None = None, value: int | None = None, **changes: Any) -> Callable[[bytes], bytes]:
    """A named tensor under another name, with other facts, or with a whole number written over its bytes."""

    def change(data: bytes) -> bytes:
        header, fields, numbers = parts_of(data)
        start, end = header[old]["data_offsets"]
        if value is not None:
            numbers = numbers[:start] + value.to_bytes(end - start, "little", signed=True) + numbers[end:]
        header[name or old] = {**header.pop(old), **changes}
        return joined(header, fields, numbers)

    return change


def scales_are(change: Callable[[JsonObject], JsonObject]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        header, fields, numbers = parts_of(data)
        return joined(header, {**fields, "scales": change(fields["scales"])}, numbers)

    return changed


def failing(**changes: Any) -> Callable[[bytes], bytes]:
    failure = {"client": 1, "kind": "rejected", "reason": "out of memory", **changes}
    return lambda _: joined({}, {"failure": failure}, b"")


def all_bits_set(data: bytes) -> bytes:
    """Every number is nan; as int8 every number −1 and every scale nan."""
    header, fields, numbers = parts_of(data)
    return joined(header, fields, b"\xff" * len(numbers))


ATTACKS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "seven bytes": lambda data: data[:7],
    "no header": lambda data: data[:8],
    "no numbers": lambda data: data[: 8 + int.from_bytes(data[:8], "little")],
    "last byte gone": lambda data: data[:-1],
    "a byte more": lambda data: data + b"\0",
    "header of 2**63 bytes": lambda data: (2**63).to_bytes(8, "little") + data[8:],
    "header of 2**64 - 1 bytes": lambda data: b"\xff" * 8 + data[8:],
    "empty header": lambda data: (0).to_bytes(8, "little") + data[8:],
    "too long": lambda data: data + bytes(2 * TASK.adapter.num_bytes + OVERHEAD),
    "not JSON": lambda data: data[:8] + b"x" + data[9:],
    "header is a list": lambda _: joined([], None, b""),
    "header is a number": lambda _: joined(7, None, b""),
    "deep JSON": lambda data: fields_are("[" * 100_000)(data),
    "no metadata": lambda data: joined({k: v for k, v in parts_of(data)[0].items() if k[:2] != "__"}, None, b""),
    "fields are no JSON": fields_are("{"),
    "fields are a list": fields_are([1, 2]),
    "fields are null": fields_are("null"),
    "fields are a text": fields_are('"failure"'),
    "no fields": fields_are({}),
    **{f"without {name}": without_field(name) for name in parts_of(HONEST["fp32"])[1]},
    "a field more": with_fields(extra=1),
    "a failure beside": with_fields(failure={}),
    "other client": with_fields(client=2),
    "client is a text": with_fields(client="1"),
    "client is true": with_fields(client=True),
    "client is 1.0": with_fields(client=1.0),
    "other round": with_fields(round=2),
    "round is nan": with_fields(round=float("nan")),
    "round is null": with_fields(round=None),
    "negative examples": with_fields(num_examples=-5),
    "no examples": with_fields(num_examples=0),
    "one example more": with_fields(num_examples=51),
    "10**400 examples": with_fields(num_examples=10**400),
    "nan examples": with_fields(num_examples=float("nan")),
    "examples are a list": with_fields(num_examples=[50]),
    "negative tokens": with_fields(num_tokens=-1),
    "2**62 tokens": with_fields(num_tokens=2**62),
    "10**400 tokens": with_fields(num_tokens=10**400),
    "metrics are a list": with_fields(metrics=["loss"]),
    "a metric is a text": with_fields(metrics={"loss": "0"}),
    "a metric is null": with_fields(metrics={"loss": None}),
    "a metric is a table": with_fields(metrics={"loss": {"a": 1}}),
    "a metric is infinite": with_fields(metrics={"loss": float("inf")}),
    "a metric is huge": with_fields(metrics={"loss": 10**400}),
    "many metrics": with_fields(metrics={str(i): 0.0 for i in range(1000)}),
    "a metric's name is long": with_fields(metrics={"x" * 10_000: 0.0}),
    "a rank as a field": with_fields(rank=1),
    "reports as a field": with_fields(report={}),
    "delta is a text": with_fields(delta="yes"),
    "delta is null": with_fields(delta=None),
    "scales are a list": with_fields(scales=[2.0]),
    "no scales": with_fields(scales={}),
    "a scale is gone": scales_are(lambda scales: dict(list(scales.items())[1:])),
    "a scale of another module": scales_are(lambda scales: {**scales, "block.2.query": 2.0}),
    "a scale of no module": scales_are(lambda scales: {**scales, "nowhere": 2.0}),
    "a scale is huge": scales_are(lambda scales: dict.fromkeys(scales, 1e300)),
    "a scale is negative": scales_are(lambda scales: dict.fromkeys(scales, -2.0)),
    "a scale is nan": scales_are(lambda scales: dict.fromkeys(scales, float("nan"))),
    "a scale is a text": scales_are(lambda scales: dict.fromkeys(scales, "2")),
    "a scale is null": scales_are(lambda scales: dict.fromkeys(scales)),
    "unknown tensor": renamed(lambda _: "x"),
    "unknown module": renamed(lambda name: name.replace("block.0", "block.7")),
    "module of a frozen layer": renamed(lambda name: name.replace("block.0", "block.2")),
    "a head more": renamed(lambda name: name.replace("block.0.query.lora_A", "head.extra")),
    "a residual": renamed(lambda name: name.replace("lora_A", "residual_A")),
    "a prototype": renamed(lambda name: name.replace("block.0.query", "prototype.2.block.0.query")),
    "a prototype's head": renamed(lambda name: name.replace("block.0.query.lora_A", "prototype.2.head.x")),
    "a prototype of no rank": renamed(lambda name: name.replace("block.0.query", "prototype.x")),
    "a prototype of no name": renamed(lambda _: "prototype."),
    "prototypes in prototypes": renamed(lambda _: "prototype.1." * 5000 + "x"),
    "empty name": renamed(lambda _: ""),
    "a report": renamed(lambda _: "/report/mine/x"),
    "a report of no name": renamed(lambda _: "/report/"),
    "a second kept tensor": renamed(lambda _: "/kept/mine/later"),
    "a brief": renamed(lambda _: "/brief/mine/x"),
    "a row": renamed(lambda _: "/trained"),
    "a rank 0": entry_of(RANK, value=0),
    "a rank 5": entry_of(RANK, value=5),
    "a rank of 2**63": entry_of(RANK, value=-(2**63)),
    "a rank of one dimension": entry_of(RANK, shape=[1]),
    "a rank of doubles": entry_of(RANK, dtype="F64"),
    "no flags": without_tensor(FLAGS),
    "no scores": without_tensor(SCORES),
    "nothing kept": without_tensor(VARIATE),
    "a report of another rule": entry_of(FLAGS, name="/report/layer_scores/flags"),
    "a report among kept tensors": entry_of(FLAGS, name="/kept/mine/flags"),
    "a kept tensor among reports": entry_of(VARIATE, name="/report/mine/variate"),
    "a kept tensor of no owner": entry_of(VARIATE, name="/kept"),
    "a kept tensor as a number of the adapter": entry_of(VARIATE, name="mine/variate"),
    "a report in int8": entry_of(SCORES, name="/int8/" + "/report/layer_scores/scores"),
    "a report in bf16": entry_of(SCORES, name="/bf16/" + "/report/layer_scores/scores"),
    "scores below 0": entry_of(SCORES, value=int.from_bytes(b"\xc0" * 24, "little", signed=True)),
    "scores of float32": entry_of(SCORES, dtype="F32", shape=[6]),
    "scores of another length": entry_of(SCORES, shape=[1, 3]),
    "scores beyond 64 bits": entry_of(SCORES, shape=[2**40, 2**40]),
    "flags as numbers": entry_of(FLAGS, dtype="U8"),
    "flags on other numbers": entry_of(FLAGS, data_offsets=[0, 2]),
    "a variate of nan": entry_of(VARIATE, value=-1),
    "a variate turned round": entry_of(VARIATE, shape=[3, 2]),
    "an int8 name": renamed(lambda name: f"/int8//int8/{name}"),
    "a bf16 name": renamed(lambda name: f"/bf16/x/{name}"),
    "a scales name": renamed(lambda _: SCALES),
    "huge shape": entry(shape=[2**40, 2**40]),
    "shape beyond 64 bits": entry(shape=[2**63, 2**63]),
    "negative shape": entry(shape=[-2, -5]),
    "shape is a text": entry(shape="2x5"),
    "other shape": entry(shape=[5, 2]),
    "flat shape": entry(shape=[10]),
    "no shape": entry(shape=[]),
    "other dtype": entry(dtype="I32"),
    "bool dtype": entry(dtype="BOOL"),
    "unknown dtype": entry(dtype="X8"),
    "offsets backwards": entry(data_offsets=[40, 0]),
    "offsets beyond": entry(data_offsets=[0, 2**62]),
    "offsets negative": entry(data_offsets=[-40, 0]),
    "every number nan": all_bits_set,
    "a failure of another client": failing(client=2),
    "an unknown failure": failing(kind="great"),
    "a failure without a reason": failing(reason=None),
    "a failure with more": failing(more=1),
    "a failure is a list": lambda _: joined({}, {"failure": [1]}, b""),
}


@pytest.mark.parametrize("format", FORMATS)
def test_an_honest_answer_counts(format: WireFormat) -> None:
    update, reason = outcome(HONEST[format])
    assert update is not None, reason
    assert update.num_examples == 50


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_an_attack_never_counts(attack: Callable[[bytes], bytes], format: WireFormat) -> None:
    update, reason = outcome(attack(HONEST[format]))
    assert update is None
    assert 5 < len(reason) < 400


def test_a_failure_of_its_own_is_what_it_says() -> None:
    assert read_answer(failing()(b""), TASK, SPEC) == ClientFailure(1, "rejected", "out of memory")


@pytest.mark.parametrize("seed", range(400))
def test_random_damage_is_an_update_or_a_wire_error(seed: int) -> None:
    """Bytes replaced, cut out, doubled or put in, half the time in the header. What counts is whole and finite."""
    rng = np.random.default_rng(seed)
    data = bytearray(HONEST[FORMATS[seed % 3]])
    end = 8 + int.from_bytes(data[:8], "little") if rng.random() < 0.5 else len(data)
    for _ in range(rng.integers(1, 5)):
        place, width = int(rng.integers(min(end, len(data)))), int(rng.integers(1, 9))
        match rng.integers(5):
            case 0:
                data[place] ^= 1 << int(rng.integers(8))
            case 1:
                data[place : place + width] = rng.bytes(width)
            case 2:
                del data[place : place + width]
            case 3:
                data[place:place] = data[place : place + width]
            case 4:
                del data[place + 1 :]
    update, _ = outcome(bytes(data))
    if update is not None:
        assert (update.client, update.round) == (1, 3)
        assert 1 <= update.num_examples <= 50
        sent = update_of(TASK, TASK.adapter, SPEC).adapter.tensors()
        got = update.adapter.tensors()
        assert {name: t.shape for name, t in got.items()} == {name: t.shape for name, t in sent.items()}
        assert all(tensor.isfinite().all() for tensor in got.values())
        assert problem_with_named(update.report, DECLARED.report, "") is None
        assert problem_with_named(update.kept, DECLARED.kept, "") is None


def test_a_delta_is_never_broadcast() -> None:
    header, fields, numbers = parts_of(HONEST["bf16"])
    name = next(name for name in header if name.endswith("lora_A"))
    start, end = header[name]["data_offsets"]
    header[name]["shape"] = [1, (end - start) // 2]
    update, reason = outcome(joined(header, fields, numbers))
    assert update is None
    assert reason.startswith("a delta has shape (1, ")


def test_an_answer_is_never_read_for_a_task_of_another_client() -> None:
    other: ClientTask = replace(TASK, client=2)
    for data in HONEST.values():
        with pytest.raises(WireError, match="it answered for client 1"):
            unpack_answer(data, other, SPEC)
