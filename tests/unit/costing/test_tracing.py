"""A step without values holds what one with values does: in all, and block by block."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import bases
import numpy as np
import pytest
import tiny_models
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hellora.client.train import train_client
from hellora.core.algebra import new_adapter
from hellora.core.exchange import Policy, TrainSettings
from hellora.core.types import Adapter, Mask
from hellora.costing.traced_rows import Shape, Tracer
from hellora.costing.tracing import HeldBytes, StepTrace, everything_of, without_values
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.everything import Everything
from hellora.methods.dispatchers.bypass import Bypass
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.strategies import Method
from hellora.model.resident import BaseModel
from hellora.tasks import Task
from hellora.tasks.causal_lm import CausalLM
from hellora.tasks.image_classification import ImageClassification
from hellora.tasks.sequence_classification import SequenceClassification

METHOD = method_of(Everything(), Whole(), ParticipantMean())
TRAIN = TrainSettings(batch_size=4)


@dataclass(frozen=True, eq=False)
class RealTracer(Tracer):
    """Steps with values."""

    def adapter(self, rows: Mask, policy: Policy) -> Adapter:
        return bases.acting_adapter(self.base)


def tracers(
    load: Callable[[], BaseModel], task: Task, tokens: int, method: Method = METHOD
) -> tuple[RealTracer, Tracer]:
    """The same model with values and without."""
    real, fake, mode = load(), load(), FakeTensorMode(allow_non_fake_inputs=True)
    for module in (fake.net, fake.head):
        if module is not None:
            without_values(module, mode, "cpu")
    shape = Shape(4, tokens)
    none: Any = nullcontext()
    return (
        RealTracer(real, task, shape, method, TRAIN, "cpu", none),
        Tracer(fake, task, shape, method, TRAIN, "cpu", mode),
    )


def assert_same(real: StepTrace, fake: StepTrace) -> None:
    for field in fields(StepTrace):
        a, b = getattr(real, field.name), getattr(fake, field.name)
        assert np.array_equal(a, b), f"{field.name}: {a} held, {b} counted"


@pytest.fixture(scope="module", params=["bert", "bert with its own head", "vit", "llama"])
def both(
    request: pytest.FixtureRequest,
    tiny_bert: Path,
    tiny_bert_with_head: Path,
    tiny_vit: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[RealTracer, Tracer]:
    if request.param == "llama":  # two heads share their keys and values
        folder = tiny_models.save_llama(tmp_path_factory.mktemp("gqa"), num_key_value_heads=1)
        return tracers(lambda: bases.load(folder, CausalLM(), dropout=0.1), CausalLM(), 48)
    if request.param == "vit":
        return tracers(lambda: bases.load(tiny_vit, ImageClassification()), ImageClassification(), 1)
    if request.param == "bert":
        return tracers(lambda: bases.load(tiny_bert), bases.MEAN_POOLING, 48)
    own = SequenceClassification(head_type="own")
    return tracers(lambda: bases.load(tiny_bert_with_head, own), own, 48)


POLICIES = [
    Policy(),
    Policy(bf16=True),
    Policy(recompute="frozen"),
    Policy(recompute="all"),
    Policy(merge=False),
    Policy(recompute="all", int8_activations=True, bf16=True, merge=False),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.in_words)
def test_a_step_without_values_holds_what_a_real_one_does(policy: Policy, both: tuple[RealTracer, Tracer]) -> None:
    real, fake = both
    everything = range(real.base.spec.num_layers)
    for trained, rank in [(everything, 3), ([], 0)] if policy == Policy() else [([0, 2], 2)]:
        rows = real.row(trained, rank)
        assert_same(real.step(rows, policy, 4), fake.step(rows, policy, 4))


def test_fused_attention_on_packed_activations(both: tuple[RealTracer, Tracer]) -> None:
    """Where BERT's attention is frozen, its kernel copies one unpacked tensor more than is counted, for a moment."""
    real, fake = (tracer.step(tracer.row([0, 2], 3), Policy(int8_activations=True), 4) for tracer in both)
    assert np.array_equal(real.keep, fake.keep)
    assert np.array_equal(real.release, fake.release)
    assert real.peak == fake.peak
    assert (np.abs(real.backward - fake.backward) <= 4 * 48 * 32 * 4).all()


@pytest.mark.parametrize(
    "changes", [{"head": "frozen"}, {"trains": "B"}, {"dispatcher": Bypass()}], ids=["head", "factors", "bypass"]
)
def test_whatever_the_method_leaves_out(changes: dict[str, Any], both: tuple[RealTracer, Tracer]) -> None:
    method = replace(METHOD, **changes)
    real, fake = (replace(tracer, method=method) for tracer in both)
    rows = real.row([0, 2], 2)
    assert_same(real.step(rows, Policy(), 3), fake.step(rows, Policy(), 3))


def test_parts_add_up_to_the_peak(both: tuple[RealTracer, Tracer]) -> None:
    trace = both[1].step(both[1].row([1, 2], 3), Policy(), 4)
    before = trace.enter + np.concatenate([[0], np.cumsum(trace.keep)])
    after = trace.end + np.concatenate([[0], np.cumsum(trace.release)])
    moments = [trace.start, *(before[:-1] + trace.forward), before[-1] + trace.head]
    moments += [after[-1] + trace.head_backward, *(after[:-1] + trace.backward)]
    assert max(moments) == trace.peak


def test_a_policy_takes_what_it_promises(both: tuple[RealTracer, Tracer]) -> None:
    fake = both[1]
    rows = fake.row(range(fake.base.spec.num_layers), 3)
    plain, again = (fake.step(rows, Policy(recompute=how), 4) for how in ("none", "all"))  # type: ignore[arg-type]
    assert again.keep[1:].sum() < 0.5 * plain.keep[1:].sum()


def test_a_block_by_hand() -> None:
    """y = tanh(x W): backward needs y alone; its output is there when the next block begins."""
    held = HeldBytes()
    x = torch.zeros(8, 16, requires_grad=True)
    weight = torch.zeros(16, 32)
    with held:
        held.enter_phase("forward")
        y = torch.tanh(x @ weight)
        assert held.held == 8 * 32 * 4
        assert held.peak == 2 * 8 * 32 * 4, "the product is there until its tanh is"
        del y
        assert held.held == 0


def test_what_is_known_is_not_counted_nor_are_its_views() -> None:
    known = torch.zeros(100)
    with HeldBytes([known]) as held:
        _view, other = known[:50], torch.zeros(7)
    assert held.peak == other.nbytes
    with HeldBytes() as held:
        _view = known[:50]
    assert held.peak == known.nbytes


def test_gradients_are_no_part_of_a_step(both: tuple[RealTracer, Tracer]) -> None:
    """They stand beside the parameters, in `CostModel.standing_bytes`."""
    for tracer in both:
        layers = range(tracer.base.spec.num_layers)
        ends = [tracer.step(tracer.row(layers, rank), Policy(), 4).end for rank in (1, 3)]
        assert ends[0] == ends[1]


def test_a_mask_of_unknown_values_selects_everything() -> None:
    mask = torch.zeros(2, 3, dtype=torch.bool)
    rows = torch.arange(2)
    a, b, kept = everything_of([mask, rows])
    assert a is not None
    assert b is not None
    assert (a.shape, b.shape, a.dtype) == ((6,), (6,), torch.long)
    assert kept is rows


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    base = bases.load(tiny_models.save_llama(tmp_path / "tied", tie_word_embeddings=True), CausalLM())
    before = base.num_bytes
    without_values(base.net, FakeTensorMode(allow_non_fake_inputs=True), "cpu")
    assert base.num_bytes == before, "once, not twice"


def test_real_training_holds_what_its_parts_say(tiny_bert: Path) -> None:
    """`train_client` as a whole: adapter, gradients, optimizer and one step."""
    real, fake = tracers(lambda: bases.load(tiny_bert), bases.MEAN_POOLING, 12)
    base = real.base
    adapter = new_adapter(base.spec, base.initial_head(), 0)
    task = bases.task_of(base, [1, 3], adapter, batch_size=4, steps=2)
    known = [*base.net.parameters(), *base.net.buffers(), *adapter.tensors().values()]
    assert base.head is not None
    with HeldBytes([*known, *base.head.parameters()]) as held:
        train_client(task, base, bases.MEAN_POOLING, bases.texts(4))
    trained = sum(t.numel() for n, t in adapter.tensors().items() if ".1." in n or ".3." in n or "head" in n)
    folded = 4 * 32 * 32 * 4  # two modules of two layers
    tokens = int(bases.MEAN_POOLING.encode(base, bases.texts(4)).lengths.max())  # type: ignore[union-attr]
    step = replace(fake, shape=Shape(4, tokens)).step(fake.row([1, 3], 3), Policy(), 4).peak
    assert held.peak == pytest.approx(folded + trained * 4 * 4 + step, rel=0.05)
