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
from hellora.backends.wire import flatten, pack_answer, pack_task, unflatten, unpack_answer, unpack_task
from hellora.dispatchers.bypass import Bypass
from hellora.dispatchers.truncate import Truncate
from hellora.dispatchers.whole import Whole
from hellora.protocols import Dispatcher
from hellora.types import Adapter, ClientFailure, ClientTask, ClientUpdate, Factors, LoraPair, Policy, TrainSettings

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
    )


@st.composite
def updates(draw: st.DrawFn) -> ClientUpdate:
    return ClientUpdate(
        round=draw(IDS),
        client=draw(IDS),
        num_examples=draw(IDS),
        adapter=draw(adapters()),
        metrics=draw(st.dictionaries(st.text(), FLOATS | st.integers())),
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
    assert exact(unpack_answer(pack_answer(update, TASK), TASK, SPEC)) == exact(update)


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
    data = pack_answer(update, task)
    assert exact(unpack_answer(data, task, SPEC)) == exact(update)
    assert b"lora_A" in data if factors == "A" else b"lora_A" not in data
    assert b"lora_B" in data if factors == "B" else b"lora_B" not in data


@given(FAILURES)
@settings(deadline=None, max_examples=30)
def test_a_failure_comes_back(failure: ClientFailure) -> None:
    assert unpack_answer(pack_answer(failure, TASK), TASK, SPEC) == failure


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
