"""Training on packed rows: the step of the examples themselves, and what is counted, kept and predicted."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import bases
import numpy as np
import pytest
import tiny_models
import torch
from factories import method_of
from torch.testing import assert_close

from hellora.budgets.cost import Work
from hellora.budgets.planner import Planner
from hellora.client.train import TrainingError, train_client
from hellora.client.work import ClientWork
from hellora.core.exchange import ClientUpdate, Outputs, Policy, TrainSettings
from hellora.core.types import ClientProfile
from hellora.costing.calibration import calibrate
from hellora.costing.traced_rows import Shape
from hellora.costing.tracing import HeldBytes
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.everything import Everything
from hellora.methods.dispatchers.whole import Whole
from hellora.model.resident import BaseModel
from hellora.tasks import Batch
from hellora.tasks.causal_lm import CausalLM

PACKED, PLAIN = CausalLM(max_length=32, packing=True), CausalLM(max_length=32)
COUNT = 24


@pytest.fixture
def llama(tiny_llama: Path) -> BaseModel:
    return bases.load(tiny_llama, PACKED)


def rows(count: int = COUNT) -> Any:
    texts = bases.texts(count)["text"]
    return bases.instructions(["the old boat"] * count, texts)


def equal(one: ClientUpdate, other: ClientUpdate) -> bool:
    tensors = other.adapter.tensors()
    return all(torch.equal(tensor, tensors[name]) for name, tensor in one.adapter.tensors().items())


def test_a_step_over_rows_is_the_step_over_their_examples(llama: BaseModel) -> None:
    """All rows make one step, as all examples do: the same loss a token, the same adapter, the same weight."""
    task = bases.task_of(llama, [0, 1, 2], batch_size=COUNT, optimizer="sgd", lr=0.1)
    packed, plain = (train_client(task, llama, kind, rows()) for kind in (PACKED, PLAIN))
    assert packed.metrics["loss"] == pytest.approx(plain.metrics["loss"], abs=1e-6)
    assert (packed.num_examples, packed.num_tokens) == (plain.num_examples, plain.num_tokens) == (COUNT, plain.weight)
    expected = plain.adapter.tensors()
    for name, tensor in packed.adapter.tensors().items():
        assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5)


def test_a_step_is_so_many_rows(llama: BaseModel) -> None:
    encoded = PACKED.encode(llama, rows())
    lines = PACKED.training_rows(llama, encoded, seed=3)
    assert lines.lengths is not None
    assert encoded.lengths is not None
    assert lines.lengths.max() <= 32
    assert lines.lengths.sum() == encoded.lengths.sum()
    assert len(lines) < COUNT / 2
    update = train_client(bases.task_of(llama, [2], batch_size=2, epochs=3), llama, PACKED, rows())
    assert update.metrics["steps"] == 3 * math.ceil(len(lines) / 2)


def test_the_seed_of_the_task_decides(llama: BaseModel) -> None:
    first, again, other = (
        train_client(bases.task_of(llama, [1], seed=seed), llama, PACKED, rows()) for seed in (7, 7, 8)
    )
    assert equal(first, again)
    assert not equal(first, other)


def test_a_prefix_cache_keeps_rows(llama: BaseModel) -> None:
    """To the bit as without it, and two thirds of the passes are skipped."""
    task = bases.task_of(llama, [2], batch_size=2, epochs=3, same_batches=True)
    plain, seen = train_client(task, llama, PACKED, rows()), 0

    def count(*_: Any) -> None:
        nonlocal seen
        seen += 1

    mlp = llama.net.model.layers[0].mlp
    hook = mlp.register_forward_hook(count)
    cached = train_client(replace(task, policy=Policy(prefix_cache="memory")), llama, PACKED, rows())
    hook.remove()
    assert equal(plain, cached)
    assert seen == cached.metrics["steps"] / 3


@pytest.mark.parametrize(
    "policy", [Policy(recompute="all"), Policy(micro_batch=1), Policy(merge=False)], ids=lambda policy: policy.in_words
)
def test_policies_leave_a_step_as_it_is(policy: Policy, llama: BaseModel) -> None:
    task = bases.task_of(llama, [1, 2], batch_size=4, optimizer="sgd", lr=0.1)
    plain, other = (train_client(replace(task, policy=p), llama, PACKED, rows()) for p in (Policy(), policy))
    expected = plain.adapter.tensors()
    for name, tensor in other.adapter.tensors().items():
        assert_close(tensor, expected[name], atol=1e-6, rtol=1e-4)


def test_blocks_may_be_left_out(llama: BaseModel) -> None:
    task = replace(bases.task_of(llama, [1], batch_size=COUNT, optimizer="sgd", lr=0.1), bypass=True)
    packed, plain = (train_client(task, llama, kind, rows()) for kind in (PACKED, PLAIN))
    assert packed.metrics["loss"] == pytest.approx(plain.metrics["loss"], abs=1e-6)


class Odd(CausalLM):
    """Finds every row not finite that has the word "rain"."""

    def outputs(self, base: BaseModel, batch: Batch) -> Outputs:
        outputs = super().outputs(base, batch)
        bad = (batch["input_ids"] == bases.id_of(base, "rain")).any(1)
        return replace(outputs, loss_sums=outputs.loss_sums.masked_fill(bad, torch.nan))


def test_a_loss_that_is_not_finite_names_the_examples_of_a_row(llama: BaseModel) -> None:
    odd = Odd(max_length=32, packing=True)
    with pytest.raises(TrainingError) as refused:
        train_client(bases.task_of(llama, [1], batch_size=COUNT), llama, odd, rows())
    named = str(refused.value).partition(" of row")[2].lstrip("s ").partition(" in ")[0]
    said = {int(place) for row in named.split(" and more")[0].split(", ") for place in row.split(" + ")}
    assert "+" in named
    assert said & {i for i, text in enumerate(rows()["response"]) if "rain" in text}


def test_a_plan_counts_rows(llama: BaseModel) -> None:
    """Half of the examples are one client's; of what a step is made of there are as many as training packs."""
    work = ClientWork(llama, PACKED, rows(), [np.arange(COUNT // 2), np.arange(COUNT // 2, COUNT)])
    packed = PACKED.training_rows(llama, work.encoded.select(work.parts[0]), seed=5)  # type: ignore[index]
    assert work.rows(0) == len(packed) < COUNT // 2
    assert work.row_tokens == 32
    assert ClientWork(llama, PLAIN, rows(), None).rows(0) is None
    profile = ClientProfile(0, COUNT // 2, num_rows=work.rows(0))
    planner = Planner(None, TrainSettings(batch_size=2, epochs=2))  # type: ignore[arg-type]
    assert planner.work(profile) == Work(len(packed), 2, 2.0)
    assert planner.work(replace(profile, num_rows=None)) == Work(COUNT // 2, 2, 2.0)


@pytest.mark.parametrize("heads", [2, 1])
def test_peak_memory_is_predicted(heads: int, tmp_path: Path) -> None:
    """Of rows that are full; with heads that share keys and values, too."""
    folder = tiny_models.save_llama(tmp_path / "llama", hidden_size=64, num_key_value_heads=heads)
    texts = bases.instructions(["the old boat"] * 12, ["we saw a boat near"] * 12)
    base = bases.load(folder, PACKED)
    encoded = PACKED.encode(base, texts)
    assert encoded.lengths is not None
    kind = CausalLM(max_length=2 * int(encoded.lengths[0]), packing=True)
    method = method_of(Everything(), Whole(), ParticipantMean())
    train = TrainSettings(batch_size=3)
    cost = calibrate(bases.load(folder, kind, rank=4), kind, Shape(3, kind.max_length), method, train)
    base = bases.load(folder, kind, rank=4)
    for layers in ([0, 1, 2], [1]):
        task = bases.task_of(base, layers, batch_size=3, steps=2)
        tensors = [*base.net.parameters(), *base.net.buffers(), *task.adapter.tensors().values()]
        with HeldBytes(tensors) as held:
            train_client(task, base, kind, texts)
        ranks = np.array([4 if layer in layers else 0 for layer in range(3)])
        predicted = cost.peak_bytes(ranks, Policy(), Work(6, 3)) - cost.weights_bytes
        assert predicted == pytest.approx(held.peak + task.adapter.num_bytes, rel=0.05)
