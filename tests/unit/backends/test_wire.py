"""Tasks and answers as bytes: decode(encode(x)) == x, bit for bit."""

from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from factories import random_adapter, task_for, tiny_spec, update_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hellora.algebra import trained_part
from hellora.backends.wire import (
    as_received,
    flatten,
    pack_answer,
    pack_task,
    read_answer,
    unflatten,
    unpack_answer,
    unpack_task,
)
from hellora.codec import wire_bytes
from hellora.dispatchers.bypass import Bypass
from hellora.dispatchers.truncate import Truncate
from hellora.dispatchers.whole import Whole
from hellora.protocols import Dispatcher
from hellora.types import (
    Adapter,
    ClientFailure,
    ClientTask,
    ClientUpdate,
    Factors,
    LoraPair,
    Policy,
    TrainSettings,
    WireFormat,
)

SPEC = tiny_spec()
TASK = task_for(0, random_adapter(SPEC, 0), np.ones((SPEC.num_layers, SPEC.max_rank), dtype=bool))

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
SIZES = st.integers(1, 4)
SPECIAL = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1e-40])
MODULES = st.sampled_from(["encoder.layer.1.query", "encoder.layer.10.query", "head.0.q", "head", "trained", "a"])
HEADS = st.sampled_from(["weight", "bias", "classifier.weight", "head.weight", "trained", "layer_scores"])
FLOATS = st.floats(allow_nan=True)
IDS = st.integers(0, 2**40)


@st.composite
def tensors(draw: st.DrawFn, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values, and some that are easily lost; sometimes a view that is not contiguous."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    values = torch.randn(shape, generator=rng)
    values = torch.where(
        torch.rand(shape, generator=rng) < 0.2, SPECIAL[torch.randint(5, shape, generator=rng)], values
    )
    values = values.to(dtype)
    return values.T.contiguous().T if draw(st.booleans()) and values.ndim == 2 else values


@st.composite
def pairs(draw: st.DrawFn) -> LoraPair:
    rank, d_in, d_out, dtype = draw(SIZES), draw(SIZES), draw(SIZES), draw(DTYPES)
    A, B = draw(tensors(rank, d_in, dtype=dtype)), draw(tensors(d_out, rank, dtype=dtype))
    return LoraPair(A, B, draw(st.floats(1e-6, 1e6)))


@st.composite
def adapters(draw: st.DrawFn) -> Adapter:
    head = draw(st.dictionaries(HEADS, st.one_of(tensors(2, 3), tensors(2), tensors(3, dtype=torch.bfloat16))))
    found = draw(st.dictionaries(MODULES, pairs()))
    residual = {name: replace(draw(pairs()), scale=1.0) for name in found if draw(st.booleans())}
    smaller = {}
    if found and draw(st.booleans()):
        own = {name: LoraPair(pair.A[:1].clone(), pair.B[:, :1].clone(), pair.scale) for name, pair in found.items()}
        smaller[draw(st.integers(1, 64))] = Adapter(own, {name: tensor.clone() for name, tensor in head.items()})
    return Adapter(found, head, residual, smaller)


@st.composite
def train_settings(draw: st.DrawFn) -> TrainSettings:
    optimizer = draw(st.sampled_from(["adamw", "sgd"]))
    return TrainSettings(
        lr=draw(st.floats(1e-300, 10)),
        optimizer=optimizer,  # type: ignore[arg-type]
        momentum=draw(st.floats(0, 1)) if optimizer == "sgd" else 0.0,
        weight_decay=draw(st.floats(0, 1)),
        batch_size=draw(st.integers(1, 99)),
        epochs=draw(st.integers(1, 9)),
        steps=draw(st.none() | st.integers(1, 9)),
        same_batches=draw(st.booleans()),
        clip_norm=draw(st.none() | st.floats(1e-9, 9)),
        precision=draw(st.sampled_from(["auto", "fp32", "bf16"])),
        tail_penalty=draw(st.floats(0, 1)),
        tail_share=draw(st.floats(0, 1, exclude_max=True)),
        min_rank=draw(st.integers(1, 9)),
    )


@st.composite
def tasks(draw: st.DrawFn) -> ClientTask:
    mask = np.random.default_rng(draw(IDS)).random((draw(SIZES), draw(SIZES))) < 0.5
    return ClientTask(
        round=draw(IDS),
        client=draw(IDS),
        seed=draw(st.integers(0, 2**63 - 1)),
        adapter=draw(adapters()),
        trained=mask.T if draw(st.booleans()) else mask,
        train=draw(train_settings()),
        head=draw(st.sampled_from(["aggregate", "frozen", "local"])),
        report_layer_scores=draw(st.booleans()),
        factors=draw(st.sampled_from(["both", "A", "B"])),
        bypass=draw(st.booleans()),
        policy=draw(st.builds(Policy, recompute=st.sampled_from(["none", "frozen", "all"]), micro_batch=st.just(4))),
        spare_bytes=draw(st.none() | IDS),
    )


@st.composite
def updates(draw: st.DrawFn) -> ClientUpdate:
    return ClientUpdate(
        round=draw(IDS),
        client=draw(IDS),
        num_examples=draw(IDS),
        adapter=draw(adapters()),
        metrics=draw(st.dictionaries(st.text(), FLOATS | st.integers(-(2**63), 2**63 - 1))),
        layer_scores=draw(st.none() | tensors(5, dtype=torch.float64)),
        num_tokens=draw(st.none() | IDS),
        rank=draw(st.none() | st.integers(1, 64)),
    )


FAILURES = st.builds(ClientFailure, IDS, st.sampled_from(["missing", "rejected"]), st.text())


def exact(value: Any) -> Any:
    """What two values have in common only if they are equal bit for bit; -0.0 is not 0.0, and nan is nan."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape, bytes(value.contiguous().reshape(-1).view(torch.uint8).tolist())
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, LoraPair):
        return exact(value.A), exact(value.B), exact(value.scale)
    if isinstance(value, dict):
        return {name: exact(item) for name, item in value.items()}
    if isinstance(value, Adapter | ClientTask | ClientUpdate):
        return {field.name: exact(getattr(value, field.name)) for field in fields(value)}
    return type(value), repr(value)


def test_exact_tells_apart_what_equality_does_not() -> None:
    assert exact(torch.tensor([-0.0])) != exact(torch.tensor([0.0]))
    assert exact(torch.tensor([torch.nan])) == exact(torch.tensor([torch.nan]))
    assert exact(torch.zeros(1).bfloat16()) != exact(torch.zeros(1).half())
    assert exact(Adapter({"a": LoraPair(torch.zeros(1, 1), torch.zeros(1, 1), 1.0)})) != exact(Adapter({}))


@given(tasks())
@settings(deadline=None, max_examples=60)
def test_a_task_comes_back(task: ClientTask) -> None:
    assert exact(unpack_task(pack_task(task))) == exact(task)


@given(updates())
@settings(deadline=None, max_examples=60)
def test_an_update_comes_back(update: ClientUpdate) -> None:
    task = replace(TASK, client=update.client)
    assert exact(unpack_answer(pack_answer(update, task, SPEC), task, SPEC)) == exact(update)


@pytest.mark.parametrize("dispatcher", [Whole(), Truncate(), Bypass()], ids=repr)
@pytest.mark.parametrize("factors", ["A", "B"])
def test_a_factor_that_is_not_trained_does_not_travel(factors: Factors, dispatcher: Dispatcher) -> None:
    """What comes out has the factor that was sent in its place, where the client trained."""
    row = np.array([[True, False, True, False]] * 2 + [[False] * 4])
    task = replace(task_for(0, dispatcher.dispatch(random_adapter(SPEC, 1), row, SPEC), row), factors=factors)
    assert exact(unpack_task(pack_task(task))) == exact(task)
    update = update_of(task, random_adapter(SPEC, 2), SPEC)
    sent = trained_part(task.adapter, row, SPEC).pairs
    whole = {
        name: replace(pair, A=sent[name].A) if factors == "B" else replace(pair, B=sent[name].B)
        for name, pair in update.adapter.pairs.items()
    }
    update = replace(update, adapter=replace(update.adapter, pairs=whole))
    data = pack_answer(update, task, SPEC)
    assert exact(unpack_answer(data, task, SPEC)) == exact(update)
    assert b"lora_A" in data if factors == "A" else b"lora_A" not in data
    assert b"lora_B" in data if factors == "B" else b"lora_B" not in data


@given(FAILURES)
@settings(deadline=None, max_examples=30)
def test_a_failure_comes_back(failure: ClientFailure) -> None:
    task = replace(TASK, client=failure.client)
    assert unpack_answer(pack_answer(failure, task, SPEC), task, SPEC) == failure


@given(adapters(), st.sampled_from(["", "adapter/"]))
@settings(deadline=None, max_examples=60)
def test_an_adapter_comes_back_from_among_other_tensors(adapter: Adapter, prefix: str) -> None:
    named, scales = flatten(adapter, prefix)
    named["/something.else"] = torch.zeros(1)
    found = unflatten(named, scales, prefix)
    assert exact(found) == exact(adapter)
    assert list(found.pairs) == list(adapter.pairs), "the order of modules is the model's"


def test_an_absent_tensor_is_an_error() -> None:
    named, scales = flatten(Adapter({"a": LoraPair(torch.zeros(2, 3), torch.zeros(4, 2), 1.0)}))
    del named["a.lora_B"]
    with pytest.raises(KeyError, match=r"a\.lora_B"):
        unflatten(named, scales)


def test_the_row_of_an_allocation_travels_as_a_view() -> None:
    mask = np.zeros((3, 2, 4), dtype=bool)
    mask[1, 0] = True
    task = ClientTask(0, 0, 0, Adapter({}), mask[1], TrainSettings())
    trained = unpack_task(pack_task(task)).trained
    assert trained.dtype == bool
    assert trained.tolist() == [[True] * 4, [False] * 4]


def test_no_pickle_travels() -> None:
    task = ClientTask(1, 2, 3, Adapter({}), np.ones((1, 1), dtype=bool), TrainSettings(lr=0.5))
    data = pack_task(task)
    header = int.from_bytes(data[:8], "little")
    assert data[8 : 8 + header].startswith(b'{"__metadata__"')
    assert asdict(unpack_task(data).train) == asdict(task.train)


# --- rounded

LOSSY: list[WireFormat] = ["bf16", "int8"]
ROW = np.array([[True, False, True, False], [True] * 4, [False] * 4])


def nudged(adapter: Adapter, by: float, seed: int = 5) -> Adapter:
    """The adapter with normal noise of this size in every tensor."""
    rng = torch.Generator().manual_seed(seed)

    def noisy(tensor: Tensor) -> Tensor:
        return tensor + by * torch.randn(tensor.shape, generator=rng)

    pairs = {name: LoraPair(noisy(pair.A), noisy(pair.B), pair.scale) for name, pair in adapter.pairs.items()}
    return replace(adapter, pairs=pairs, head={name: noisy(tensor) for name, tensor in adapter.head.items()})


def whole_task(factors: Factors = "both") -> ClientTask:
    """A task with a frozen layer, frozen components, a residual and a prototype."""
    bank, other = random_adapter(SPEC, 1), random_adapter(SPEC, 2)
    residual = {name: replace(pair, scale=1.0) for name, pair in list(other.pairs.items())[:2]}
    bank = replace(bank, residual=residual, prototypes={2: replace(other, head=dict(other.head))})
    return replace(task_for(3, bank, ROW), factors=factors, report_layer_scores=True)


@pytest.mark.parametrize("format", LOSSY)
def test_a_rounded_task_is_near_and_all_but_its_adapter_is_exact(format: WireFormat) -> None:
    task = whole_task()
    received = as_received(task, format)
    assert exact(received) == exact(unpack_task(pack_task(task, format)))
    assert exact(replace(received, adapter=task.adapter)) == exact(task)
    got, sent = received.adapter.tensors(), task.adapter.tensors()
    assert got.keys() == sent.keys()
    for name, tensor in got.items():
        assert 0 < (tensor - sent[name]).norm() / sent[name].norm() < (0.004 if format == "bf16" else 0.02), name
    assert {name: pair.scale for name, pair in received.adapter.pairs.items()} == {
        name: pair.scale for name, pair in task.adapter.pairs.items()
    }
    assert exact(as_received(received, format)) == exact(received), "it is rounded once"


def test_a_task_is_received_as_it_is_in_fp32() -> None:
    task = whole_task()
    assert as_received(task, "fp32") is task


@pytest.mark.parametrize("factors", ["both", "A", "B"])
@pytest.mark.parametrize("format", LOSSY)
def test_the_delta_of_an_answer_is_added_to_what_was_sent(format: WireFormat, factors: Factors) -> None:
    """The client trains from what it received, rounded; the server gets its own, exact, plus the client's delta."""
    task = whole_task(factors)
    received = as_received(task, format)
    trained = update_of(received, nudged(received.adapter, 1e-4), SPEC)
    before = trained_part(received.adapter, ROW, SPEC).pairs
    pairs = {
        name: LoraPair(
            before[name].A if factors == "B" else pair.A, before[name].B if factors == "A" else pair.B, pair.scale
        )
        for name, pair in trained.adapter.pairs.items()
    }
    scores = torch.tensor([0.1, 0.2, torch.nan], dtype=torch.float64)
    adapter = replace(trained.adapter, pairs=pairs)
    answer = replace(trained, adapter=adapter, metrics={"loss": 1 / 3}, num_tokens=11, rank=2, layer_scores=scores)
    data = pack_answer(answer, received, SPEC, format)
    got = unpack_answer(data, task, SPEC)
    assert isinstance(got, ClientUpdate)
    assert exact(replace(got, adapter=adapter)) == exact(answer), "all but the adapter is exact"
    sent, start = replace(task.adapter, residual={}, prototypes={}), received.adapter.tensors()
    exactly = replace(trained_part(sent, ROW, SPEC), head=sent.head).tensors()
    began = replace(trained_part(received.adapter, ROW, SPEC), head=received.adapter.head).tensors()
    assert got.adapter.tensors().keys() == exactly.keys() == adapter.tensors().keys()
    assert start.keys() > began.keys()
    for name, tensor in got.adapter.tensors().items():
        delta = adapter.tensors()[name].double() - began[name].double()
        off = (tensor.double() - exactly[name].double() - delta).norm()
        if name.endswith({"both": "none", "A": "lora_B", "B": "lora_A"}[factors]):
            assert exact(tensor) == exact(exactly[name]), "what is not trained is the server's own, to the bit"
        else:
            assert 0 < off / delta.norm() < 0.03, f"{name}: of the delta, not of the value"


@pytest.mark.parametrize("format", LOSSY)
def test_what_a_client_did_not_move_comes_back_to_the_bit(format: WireFormat) -> None:
    task = whole_task()
    received = as_received(task, format)
    got = unpack_answer(pack_answer(update_of(received, received.adapter, SPEC), received, SPEC, format), task, SPEC)
    assert isinstance(got, ClientUpdate)
    assert exact(got.adapter) == exact(update_of(task, task.adapter, SPEC).adapter)


@pytest.mark.parametrize("format", LOSSY)
def test_many_small_changes_are_not_lost(format: WireFormat) -> None:
    """Each far below what rounding a value leaves of it: 40 rounds of 1e-4 move a value of 1 by 4e-3 all the same."""
    adapter = Adapter({}, {"weight": torch.tensor([[1.0, -1.0, 0.37]])})
    spec = replace(SPEC, modules=())
    for round in range(40):
        task = replace(task_for(0, adapter, ROW), seed=round)
        received = as_received(task, format)
        trained = replace(received.adapter, head={"weight": received.adapter.head["weight"] + 1e-4})
        got = unpack_answer(pack_answer(ClientUpdate(0, 0, 1, trained), received, spec, format), task, spec)
        assert isinstance(got, ClientUpdate)
        adapter = got.adapter
    moved = adapter.head["weight"] - torch.tensor([[1.0, -1.0, 0.37]])
    torch.testing.assert_close(moved, torch.full((1, 3), 4e-3), rtol=0.02, atol=0)


def test_the_same_seed_gives_the_same_bytes() -> None:
    task = whole_task()
    answer = update_of(task, random_adapter(SPEC, 9), SPEC)
    assert pack_task(task, "int8") == pack_task(task, "int8") != pack_task(replace(task, seed=8), "int8")
    assert pack_answer(answer, task, SPEC, "int8") == pack_answer(answer, task, SPEC, "int8")
    other = replace(task, seed=8)
    assert pack_answer(answer, task, SPEC, "int8") != pack_answer(answer, other, SPEC, "int8")


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8"])
def test_counted_bytes_are_those_that_travel(format: WireFormat) -> None:
    """To within 2 % of the message, names and shapes included, for pairs of the size of a small model's."""
    modules = tuple(replace(m, d_in=768, d_out=768) for m in SPEC.modules)
    spec = replace(SPEC, modules=modules, max_rank=16)
    bank = random_adapter(spec, 0)
    task = task_for(0, bank, np.ones((spec.num_layers, 16), dtype=bool))
    assert len(pack_task(task, format)) == pytest.approx(wire_bytes(bank.tensors().values(), format), rel=0.02)
    update = update_of(task, nudged(bank, 1e-3), spec)
    expected = wire_bytes(update.adapter.tensors().values(), format)
    assert len(pack_answer(update, task, spec, format)) == pytest.approx(expected, rel=0.02)


# --- what is no answer


def test_an_answer_for_another_client_is_refused() -> None:
    other = replace(TASK, client=1)
    data = pack_answer(update_of(other, random_adapter(SPEC, 1), SPEC), other, SPEC)
    assert read_answer(data, TASK, SPEC) == ClientFailure(0, "rejected", "it answered for client 1")
    failed = pack_answer(ClientFailure(1, "missing", "no"), other, SPEC)
    assert read_answer(failed, TASK, SPEC) == ClientFailure(0, "rejected", "it answered for client 1")
