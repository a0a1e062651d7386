"""Tasks and answers as bytes: decode(encode(x)) == x, bit for bit."""

import re
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from factories import dispatched, gathered, random_adapter, task_for, tiny_spec, update_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hellora.backends.wire import (
    OVERHEAD,
    as_received,
    flatten,
    most_bytes,
    pack_answer,
    pack_task,
    read_answer,
    unflatten,
    unpack_answer,
    unpack_task,
)
from hellora.core.algebra import trained_part
from hellora.core.codec import wire_bytes
from hellora.core.exchange import (
    ClientFailure,
    ClientTask,
    ClientUpdate,
    Declared,
    Factors,
    Policy,
    TensorSpec,
    TrainSettings,
    WireFormat,
)
from hellora.core.types import Adapter, ClientProfile, LoraPair
from hellora.methods.dispatchers.bypass import Bypass
from hellora.methods.dispatchers.truncate import Truncate
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.sharing import answer_part
from hellora.methods.strategies import Dispatcher

SPEC = tiny_spec()
TASK = task_for(0, random_adapter(SPEC, 0), np.ones((SPEC.num_layers, SPEC.max_rank), dtype=bool))

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
SIZES = st.integers(1, 4)
SPECIAL = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1e-40])
MODULES = st.sampled_from(["encoder.layer.1.query", "encoder.layer.10.query", "head.0.q", "head", "trained", "a"])
HEADS = st.sampled_from(["weight", "bias", "classifier.weight", "head.weight", "trained", "layer_scores"])
NAMES = st.sampled_from(
    ["layer_scores/scores", "scaffold/head.weight", "a/b/c", "mine/int8", "mine//brief/x", "mine/é", "my/bf16/x"]
)
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
def named(draw: st.DrawFn) -> dict[str, Tensor]:
    """Named tensors of any kind, some of them empty and some without a dimension."""
    dtype = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16])
    shape = st.sampled_from([(), (0,), (0, 3), (1,), (5,), (2, 3), (3, 1, 2)])
    found = draw(st.dictionaries(NAMES, st.tuples(dtype, shape), max_size=3))
    return {name: draw(tensors(*size, dtype=kind)) for name, (kind, size) in found.items()}


@st.composite
def train_settings(draw: st.DrawFn) -> TrainSettings:
    optimizer = draw(st.sampled_from(["adamw", "sgd", "adamw_8bit"]))
    return TrainSettings(
        lr=draw(st.floats(1e-300, 10)),
        schedule=draw(st.sampled_from(["constant", "linear", "cosine"])),
        warmup=draw(st.floats(0, 0.99)),
        schedule_over=draw(st.sampled_from(["run", "round"])),
        optimizer=optimizer,  # type: ignore[arg-type]
        momentum=draw(st.floats(0, 1)) if optimizer == "sgd" else 0.0,
        weight_decay=draw(st.floats(0, 1)),
        batch_size=draw(st.integers(1, 99)),
        epochs=draw(st.integers(1, 9)),
        steps=draw(st.none() | st.integers(1, 9)),
        same_batches=draw(st.booleans()),
        clip_norm=draw(st.none() | st.floats(1e-9, 9)),
        precision=draw(st.sampled_from(["auto", "fp32", "bf16"])),
    )


@st.composite
def tasks(draw: st.DrawFn) -> ClientTask:
    mask = np.random.default_rng(draw(IDS)).random((draw(SIZES), draw(SIZES))) < 0.5
    return ClientTask(
        round=draw(IDS),
        rounds=draw(IDS),
        client=draw(IDS),
        seed=draw(st.integers(0, 2**63 - 1)),
        adapter=draw(adapters()),
        trained=mask.T if draw(st.booleans()) else mask,
        train=draw(train_settings()),
        head=draw(st.sampled_from(["aggregate", "frozen", "local"])),
        factors=draw(st.sampled_from(["both", "A", "B"])),
        cut=draw(st.booleans()),
        bypass=draw(st.booleans()),
        brief=draw(named()),
        kept=draw(named()),
        kept_version=draw(st.none() | IDS),
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
        num_tokens=draw(st.none() | IDS),
        report=draw(named()),
        kept=draw(named()),
    )


FAILURES = st.builds(ClientFailure, IDS, st.sampled_from(["missing", "rejected"]), st.text())


def exact(value: Any) -> Any:
    """What two values have in common only if they are equal bit for bit; -0.0 is not 0.0, and nan is nan."""
    if isinstance(value, Tensor):
        flat = value.contiguous().reshape(-1)
        return value.dtype, value.shape, bytes(flat.view(torch.uint8).tolist())
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
    cut = dispatcher.sends(row, SPEC).cut
    task = task_for(0, dispatched(dispatcher, random_adapter(SPEC, 1), row, SPEC), row, cut)
    task = replace(task, factors=factors)
    assert exact(unpack_task(pack_task(task))) == exact(task)
    update = update_of(task, random_adapter(SPEC, 2), SPEC)
    sent = trained_part(task.adapter, row, SPEC, cut).pairs
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
    global_pair, other = random_adapter(SPEC, 1), random_adapter(SPEC, 2)
    residual = {name: replace(pair, scale=1.0) for name, pair in list(other.pairs.items())[:2]}
    global_pair = replace(global_pair, residual=residual, prototypes={2: replace(other, head=dict(other.head))})
    task = replace(task_for(3, global_pair, ROW), factors=factors, kept_version=4)
    return replace(task, brief=every_kind("of/"), kept=every_kind("my/"))


def every_kind(prefix: str = "") -> dict[str, Tensor]:
    """Named tensors that a wire format must not touch, with values that rounding would change."""
    rng = torch.Generator().manual_seed(8)
    single = torch.rand(3, 4, generator=rng)
    single[0] = torch.tensor([torch.nan, torch.inf, -0.0, 1e-40])
    return {
        f"{prefix}single": single,
        f"{prefix}double": torch.rand(5, dtype=torch.float64, generator=rng),
        f"{prefix}whole": torch.tensor([[2**62, -1]]),
        f"{prefix}yes": torch.tensor([True, False]),
        f"{prefix}none": torch.zeros(0, 7),
        f"{prefix}scalar": torch.tensor(0.1),
        f"{prefix}count": torch.tensor(3),
        f"{prefix}turned": torch.rand(4, 2, generator=rng).T,
    }


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
    adapter = replace(trained.adapter, pairs=pairs)
    told = {"report": every_kind("a/"), "kept": every_kind("my/")}
    answer = replace(trained, adapter=adapter, metrics={"loss": 1 / 3}, num_tokens=11, **told)
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


def test_an_answer_is_not_rounded_as_its_task_was() -> None:
    """A client that returns a delta equal to what it received: the two roundings are independent."""
    spec = tiny_spec(num_layers=200)
    received = random_adapter(spec, 0)
    task = task_for(0, received, np.ones((spec.num_layers, spec.max_rank), dtype=bool))
    zero = Adapter({n: LoraPair(0 * p.A, 0 * p.B, p.scale) for n, p in received.pairs.items()}, {})
    at_zero = replace(task, adapter=replace(zero, head=received.head))
    down = as_received(task, "int8").adapter.tensors()
    answer = read_answer(pack_answer(update_of(at_zero, received, spec), at_zero, spec, "int8"), at_zero, spec)
    assert isinstance(answer, ClientUpdate)
    exact, up = received.tensors(), answer.adapter.tensors()
    errors = [torch.cat([(t[n] - exact[n]).flatten() for n in exact if n in up and "lora" in n]) for t in (down, up)]
    assert min(float(error.abs().mean()) for error in errors) > 1e-4
    assert torch.corrcoef(torch.stack(errors))[0, 1].abs() < 5 / len(errors[0]) ** 0.5


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8"])
def test_counted_bytes_are_those_that_travel(format: WireFormat) -> None:
    """To within 2 % of the message, names and shapes included, for pairs of the size of a small model's."""
    modules = tuple(replace(m, d_in=768, d_out=768) for m in SPEC.modules)
    spec = replace(SPEC, modules=modules, max_rank=16)
    global_pair = random_adapter(spec, 0)
    task = task_for(0, global_pair, np.ones((spec.num_layers, 16), dtype=bool))
    assert len(pack_task(task, format)) == pytest.approx(counted(global_pair.tensors().values(), format), rel=0.02)
    update = update_of(task, nudged(global_pair, 1e-3), spec)
    expected = counted(update.adapter.tensors().values(), format)
    assert len(pack_answer(update, task, spec, format)) == pytest.approx(expected, rel=0.02)


def counted(tensors: Iterable[Tensor], format: WireFormat) -> int:
    return wire_bytes(map(TensorSpec.of, tensors), format)


# --- named tensors


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("version", [None, 0, 7])
def test_named_tensors_of_a_task_are_never_rounded(format: WireFormat, cut: bool, version: int | None) -> None:
    adapter = dispatched(Truncate(), TASK.adapter, ROW, SPEC) if cut else TASK.adapter
    task = replace(task_for(3, adapter, ROW, cut), brief=every_kind("a/"), kept=every_kind("b/"), kept_version=version)
    back = unpack_task(pack_task(task, format))
    assert exact(dict(back.brief)) == exact(dict(task.brief))
    assert exact(dict(back.kept)) == exact(dict(task.kept))
    assert (back.cut, back.kept_version) == (cut, version)
    assert exact(replace(back, adapter=task.adapter)) == exact(task)
    assert back.adapter.tensors().keys() == adapter.tensors().keys()


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8"])
def test_named_tensors_of_an_answer_are_never_rounded(format: WireFormat) -> None:
    update = replace(update_of(TASK, random_adapter(SPEC, 1), SPEC), report=every_kind("a/"), kept=every_kind("b/"))
    back = unpack_answer(pack_answer(update, TASK, SPEC, format), TASK, SPEC)
    assert isinstance(back, ClientUpdate)
    assert exact(dict(back.report)) == exact(dict(update.report))
    assert exact(dict(back.kept)) == exact(dict(update.kept))
    assert exact(replace(back, adapter=update.adapter)) == exact(update)


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8"])
def test_what_a_task_declares_does_not_travel(format: WireFormat) -> None:
    """Both sides know it from the experiment."""
    declared = Declared(brief={"a/x": TensorSpec((2,))}, report={"a/y": TensorSpec((9,))}, scratch_bytes=5)
    told = replace(TASK, brief={"a/x": torch.rand(2)})
    assert pack_task(replace(told, declared=declared), format) == pack_task(told, format)


def test_bytes_of_named_tensors_are_those_that_are_declared() -> None:
    """To the names and shapes."""
    specs = {f"a/{name}": TensorSpec.of(tensor) for name, tensor in every_kind().items()}
    kept = {f"b/{name}": spec for name, spec in specs.items()}
    declared = Declared(specs, specs, kept, scratch_bytes=1000)
    size = 12 * 4 + 5 * 8 + 2 * 8 + 2 + 0 + 4 + 8 + 8 * 4
    assert (declared.bytes_down, declared.bytes_up, declared.bytes_held) == (size, size, 4 * size + 1000)
    more = len(pack_task(replace(TASK, brief=every_kind("a/")))) - len(pack_task(TASK))
    assert size <= more <= size + 130 * len(specs)


# --- what is no answer

REAL = replace(
    TASK,
    declared=Declared(
        report={
            "scores/all": TensorSpec((3,), torch.float64, low=0.0, may_be_nan=True),
            "scores/rank": TensorSpec((), torch.int64, low=1, high=4, optional=True),
            "scores/change": TensorSpec((2, 2)),
        },
        kept={"scores/mine": TensorSpec((2, 2)), "scores/later": TensorSpec((1,), optional=True)},
    ),
)
TOLD = {
    "scores/all": torch.tensor([0.0, 2.5, torch.nan], dtype=torch.float64),
    "scores/rank": torch.tensor(4),
    "scores/change": torch.full((2, 2), -1e30),
}
MINE = {"scores/mine": torch.ones(2, 2)}
BREACHES: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "undeclared": ({"scores/more": torch.zeros(1)}, "report scores/more was not declared"),
    "of no rule": ({"": torch.zeros(1)}, "report  was not declared"),
    "of another rule": ({"other/all": TOLD["scores/all"]}, "report other/all was not declared"),
    "absent": ({"scores/all": None}, "report scores/all is absent"),
    "too long": ({"scores/all": torch.zeros(4, dtype=torch.float64)}, r"report scores/all is torch.float64 \(4,\)"),
    "a matrix": ({"scores/all": torch.zeros(3, 1, dtype=torch.float64)}, r"is torch.float64 \(3, 1\), expected"),
    "empty": ({"scores/change": torch.zeros(0, 2)}, r"scores/change is torch.float32 \(0, 2\), expected"),
    "float32": ({"scores/all": torch.zeros(3)}, r"is torch.float32 \(3,\), expected torch.float64 \(3,\)"),
    "a rank of float": ({"scores/rank": torch.tensor(2.0)}, r"is torch.float32 \(\), expected torch.int64"),
    "nan": ({"scores/change": torch.tensor([[0, 0], [0, torch.nan]])}, "scores/change has nan or infinite values"),
    "infinite": ({"scores/all": torch.tensor([1, torch.inf, 1]).double()}, "all has nan or infinite values"),
    "below": ({"scores/all": torch.tensor([1, -1e-300, 1], dtype=torch.float64)}, "all has values outside 0 to inf"),
    "rank 0": ({"scores/rank": torch.tensor(0)}, "rank has values outside 1 to 4"),
    "rank 5": ({"scores/rank": torch.tensor(5)}, "rank has values outside 1 to 4"),
    "rank -2**63": ({"scores/rank": torch.tensor(-(2**63))}, "rank has values outside 1 to 4"),
}


def heard_of(task: ClientTask, simulated: bool, **told: Any) -> ClientUpdate | str:
    """What an answer with these named tensors comes to: an update that counts, or why it does not."""
    update = replace(update_of(TASK, random_adapter(SPEC, 1), SPEC, 10), report=TOLD)
    answer = read_answer(pack_answer(replace(update, **told), TASK, SPEC), task, SPEC)
    found = gathered([task], [answer], SPEC, [ClientProfile(0, 10)], simulated=simulated)
    return found.answers[0][1] if found.answers else found.failures[0].reason


@pytest.mark.parametrize("rank", [None, 1, 4])
def test_reports_as_they_were_declared_count(rank: int | None) -> None:
    told = {name: tensor for name, tensor in TOLD.items() if name != "scores/rank"}
    told |= {} if rank is None else {"scores/rank": torch.tensor(rank)}
    update = heard_of(REAL, False, report=told)
    assert isinstance(update, ClientUpdate), update
    assert exact(dict(update.report)) == exact(told)
    assert update.kept == {}


@pytest.mark.parametrize(("changes", "why"), BREACHES.values(), ids=BREACHES)
def test_other_reports_are_rejected_with_the_reason(changes: dict[str, Tensor | None], why: str) -> None:
    told = {name: tensor for name, tensor in {**TOLD, **changes}.items() if tensor is not None}
    reason = heard_of(REAL, False, report=told)
    assert isinstance(reason, str)
    assert re.search(why, reason), reason
    assert reason.startswith("report ")
    assert "\n" not in reason


def test_what_a_real_client_keeps_must_not_come_along() -> None:
    assert heard_of(REAL, False, kept=MINE) == "kept tensor scores/mine was not declared"
    assert heard_of(REAL, True) == "kept tensor scores/mine is absent"
    update = heard_of(REAL, True, kept=MINE)
    assert isinstance(update, ClientUpdate)
    assert exact(dict(update.kept)) == exact(MINE)
    assert "nan" in heard_of(REAL, True, kept={"scores/mine": torch.full((2, 2), torch.nan)})  # type: ignore[operator]
    assert heard_of(REAL, True, kept={**MINE, "scores/x": torch.ones(1)}) == "kept tensor scores/x was not declared"


@pytest.mark.parametrize("where", ["report", "kept"])
def test_too_many_bytes_of_named_tensors_are_not_even_read(where: str) -> None:
    """All that is declared counts, and no more than an envelope besides."""
    sent = answer_part(REAL, SPEC)
    named = 3 * 8 + 8 + 4 * 4 + 4 * 4 + 4
    assert most_bytes(REAL, sent) == 2 * sent.num_bytes + named + OVERHEAD
    reason = heard_of(REAL, True, **{where: {"scores/all": torch.zeros(most_bytes(REAL, sent) // 4)}})
    assert isinstance(reason, str)
    assert re.fullmatch(r"its answer has \d+ bytes, at most \d+ were expected", reason)


def test_an_answer_for_another_client_is_refused() -> None:
    other = replace(TASK, client=1)
    data = pack_answer(update_of(other, random_adapter(SPEC, 1), SPEC), other, SPEC)
    assert read_answer(data, TASK, SPEC) == ClientFailure(0, "rejected", "it answered for client 1")
    failed = pack_answer(ClientFailure(1, "missing", "no"), other, SPEC)
    assert read_answer(failed, TASK, SPEC) == ClientFailure(0, "rejected", "it answered for client 1")
