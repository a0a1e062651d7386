"""Every architecture of docs/your-model.md keeps these laws: what is trained and measured is the model, and no other.

The models have two blocks and random weights. Examples are made, of unequal lengths, padded on the right.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import bases
import numpy as np
import peft
import pytest
import torch
from architectures import EVERY, IMAGE, LANGUAGE, SEQ2SEQ, WORD, base_of, batch_of
from factories import Lent, bits, method_of
from torch import Tensor, nn

from hellora.backends.local import LocalBackend
from hellora.client.batches import training_batches
from hellora.client.evaluation import fisher_scores, sum_of_squares
from hellora.client.train import train_client
from hellora.client.work import ClientWork
from hellora.core.errors import InputError
from hellora.core.exchange import Outputs, Policy, Recompute, TrainSettings
from hellora.core.seeds import seed_for
from hellora.core.state import ServerState
from hellora.core.types import Adapter, ClientProfile
from hellora.experiments.model_checks import bypass_check
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.everything import Everything
from hellora.methods.dispatchers.whole import Whole
from hellora.model.resident import BaseModel
from hellora.model.settings import Kind, ModelSettings
from hellora.server.federation import Federation
from hellora.server.rounds import federate
from hellora.tasks import Batch, Columns, Encoded, Example, Task

COUNT, TOKENS = 6, 6
MIXES_PADDING = ("funnel",)  # it pools neighbours, padding too, so that an example depends on what stands beside it
LEFT_IN = ("convnext", "cvt", "funnel", "levit", "mobilevit")  # a layer is a stage, of another shape or a list
LEFT_IN += ("bart", "bart seq2seq", "t5", "t5 seq2seq")  # without its own blocks a decoder does not hear its encoder


@dataclass(frozen=True)
class Made(Task):
    """The examples of this task are numbers of rows of one batch that is made beforehand."""

    task: Task
    batch: Mapping[str, Tensor]
    lengths: tuple[int, ...]
    columns: ClassVar[Columns] = "text"

    @staticmethod
    def of(task: Task, base: BaseModel) -> "Made":
        torch.manual_seed(1)
        batch = batch_of(task, base, COUNT, TOKENS)
        unequal = task is not IMAGE and base.net.config.model_type not in MIXES_PADDING
        lengths = (6, 4, 6, 5, 6, 4) if unequal else (TOKENS,) * COUNT
        if task not in (WORD, SEQ2SEQ):
            batch["labels"] = torch.arange(COUNT) % 3 if task is not LANGUAGE else batch["input_ids"].clone()
        if task is not IMAGE:
            ids, mask = batch["input_ids"], torch.ones_like(batch["input_ids"])
            for row, length in enumerate(lengths):
                ids[row, length - 1], ids[row, length:], mask[row, length:] = 3, 0, 0
            batch["attention_mask"] = mask
        if task in (LANGUAGE, SEQ2SEQ):
            batch["labels"][batch["attention_mask"] == 0] = -100
        if task is WORD:
            batch["places"] = batch["places"].where(batch["attention_mask"] == 1, -1)
        return Made(task, batch, lengths)

    def kind(self) -> Kind:
        return self.task.kind()

    def load(self, settings: ModelSettings, labels: Sequence[str], seed: int, weights: bool = True) -> BaseModel:
        raise NotImplementedError

    def encode(self, base: BaseModel, rows: Any) -> Encoded:
        return Encoded([{"row": row} for row in rows], np.array([self.lengths[row] for row in rows]))

    def collate(self, base: BaseModel, examples: Sequence[Example]) -> Batch:
        rows = [example["row"] for example in examples]
        width = max(self.lengths[row] for row in rows)
        return {
            name: value[rows] if name == "pixel_values" or value.ndim == 1 else value[rows][:, :width]
            for name, value in self.batch.items()
        }

    def logits(self, base: BaseModel, batch: Batch) -> Tensor:
        return self.task.logits(base, batch)

    def score(self, logits: Tensor, batch: Batch) -> Outputs:
        return self.task.score(logits, batch)


def made(name: str) -> tuple[Made, BaseModel]:
    task, base = base_of(name)
    return Made.of(task, base), base


def all_of(base: BaseModel) -> dict[str, Tensor]:
    """Parameters and buffers, saved with a model or not."""
    modules = [base.net] if base.head is None else [base.net, base.head]
    return {f"{i} {n}": t for i, m in enumerate(modules) for n, t in (*m.named_parameters(), *m.named_buffers())}


@pytest.mark.parametrize("name", EVERY)
def test_the_base_is_never_written_to(name: str) -> None:
    """By two clients, and by whoever evaluates in between; not one bit of it, and no other tensor takes its place."""
    kind, base = made(name)
    before, places = bits(all_of(base)), {key: id(tensor) for key, tensor in all_of(base).items()}
    last = base.spec.num_layers - 1
    for layers, policy in ((range(last + 1), Policy()), ([0], Policy("all", int8_activations=True, merge=False))):
        task = bases.task_of(base, bases.row_of(base, layers), steps=2, batch_size=3, lr=0.1)
        update = train_client(replace(task, policy=policy), base, kind, range(COUNT))
        assert update.metrics["steps"] == 2
        with torch.no_grad(), base.adapted(task.adapter):
            kind.outputs(base, kind.collate(base, kind.encode(base, range(COUNT)).examples))
    assert bits(all_of(base)) == before
    assert {key: id(tensor) for key, tensor in all_of(base).items()} == places


@pytest.mark.parametrize("name", EVERY)
def test_fisher_scores_do_not_depend_on_the_batch(name: str) -> None:
    """As many tokens as examples, more, and fewer, against one example at a time without copies."""
    kind, base = made(name)
    adapter = bases.acting_adapter(base)
    expected = sum_of_squares(adapter, base, kind, kind.encode(base, range(COUNT)), None) / COUNT
    assert (expected > 0).all()
    for size in (TOKENS, 4, 1):
        got = fisher_scores(adapter, base, kind, kind.encode(base, range(COUNT)), size)
        np.testing.assert_allclose(got, expected, rtol=2e-4, err_msg=f"batches of {size}")


def gradients(kind: Made, base: BaseModel, layers: Sequence[int], **how: Any) -> dict[str, Tensor]:
    """What one batch makes of the trained pairs, dropout as ever."""
    adapter = how.pop("adapter", None) or bases.acting_adapter(base)
    batch = kind.collate(base, kind.encode(base, range(COUNT)).examples)
    torch.manual_seed(3)
    with base.adapted(adapter, bases.row_of(base, layers), **how) as adapted:
        kind.outputs(base, batch).loss_sums.sum().backward()
        named = {f"{n}.{f}": getattr(m, f).grad for n, m in adapted.lora.items() for f in "AB"}
    return {name: gradient for name, gradient in named.items() if gradient is not None}


def assert_close(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], relative: float) -> None:
    """Every tensor to a part of the largest number among all."""
    assert got.keys() == expected.keys() != set()
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    assert largest > 0
    for name, tensor in expected.items():
        torch.testing.assert_close(
            got[name], tensor, rtol=0, atol=relative * largest, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("how", [pytest.param("frozen", marks=pytest.mark.slow), "all"])
@pytest.mark.parametrize("name", EVERY)
def test_blocks_that_are_run_again_give_the_same_gradients(name: str, how: Recompute) -> None:
    kind, base = made(name)
    assert_close(gradients(kind, base, [0], policy=Policy(how)), gradients(kind, base, [0]), 1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_a_block_that_is_left_out_is_as_if_it_were_not_there_or_refused(name: str) -> None:
    """A block that returns what it was given, computed by hand; of every block in turn."""
    kind, base = made(name)
    if name in LEFT_IN:
        with pytest.raises(InputError, match=r"method\.dispatcher leaves blocks out, and this model"):
            bypass_check(base, kind, range(COUNT))
        return
    bypass_check(base, kind, range(COUNT))
    whole, layers = bases.acting_adapter(base), range(base.spec.num_layers)
    for absent in layers:
        kept = [layer for layer in layers if layer != absent]
        adapter = replace(whole, pairs={n: p for n, p in whole.pairs.items() if base.spec.layer_of[n] != absent})
        base.net.eval()
        got = logits(kind, base, adapter, row=bases.row_of(base, kept), bypass=True)
        hook = base.net.get_submodule(base.spec.layers[absent]).register_forward_hook(pass_on, with_kwargs=True)
        expected = logits(kind, base, adapter)
        hook.remove()
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        assert (expected - logits(kind, base, adapter)).abs().max() > 1e-4, "the block did something"


def pass_on(_block: Any, inputs: Any, named: Any, answer: Any) -> Any:
    """Answer with the hidden states that came in, and the rest as it is."""
    hidden = inputs[0] if inputs else named["hidden_states"]
    return (hidden, *answer[1:]) if isinstance(answer, tuple) else hidden


@torch.no_grad()
def logits(kind: Made, base: BaseModel, adapter: Adapter, row: Any = None, **how: Any) -> Tensor:
    with base.adapted(adapter, row, **how):
        base.net.eval()
        return kind.logits(base, kind.collate(base, kind.encode(base, range(COUNT)).examples))


SEED, ROUNDS = 5, 2
TRAIN = TrainSettings(optimizer="sgd", lr=0.02, momentum=0.9, weight_decay=0.0, batch_size=4, epochs=2)


@pytest.mark.parametrize("name", EVERY)
def test_federated_training_is_training(name: str) -> None:
    """With one client that trains everything, each round is an epoch or two of a plain loop with peft; no dropout."""
    kind, base = made(name)
    start = bases.acting_adapter(base)
    expected = [{key: t.clone() for key, t in tensors.items()} for tensors in rounds_of_peft(kind, base, start)]
    base.train_mode = lambda *_: None  # type: ignore[method-assign]
    fleet = (ClientProfile(0, COUNT),)
    method = method_of(Everything(), Whole(), ParticipantMean())
    run = Federation(base.spec, fleet, method, ROUNDS, 1, SEED, TRAIN)
    with LocalBackend(ClientWork(base, kind, range(COUNT), None), fleet) as backend:
        reports = list(federate(ServerState(0, start), run, backend, Lent()))
    assert len(reports) == len(expected) == ROUNDS
    before: Mapping[str, Tensor] = start.tensors()
    for report, tensors in zip(reports, expected, strict=True):
        got = report.state.adapter.tensors()
        assert report.counted.updated == (0,), report.counted.rejected
        moved = max(float((tensors[key] - before[key]).abs().max()) for key in tensors)
        assert moved > 1e-4
        for key, tensor in tensors.items():
            assert (got[key] - tensor).abs().max() <= 1e-3 * moved, key
        before = tensors


def rounds_of_peft(kind: Made, base: BaseModel, start: Adapter) -> Iterator[dict[str, Tensor]]:
    """What has been trained after each round, by hellora's names, in eval mode."""
    names = [module.name for module in base.spec.modules]
    transposed = not isinstance(base.net.get_submodule(names[0]), nn.Linear)
    config = peft.LoraConfig(
        r=2, lora_alpha=2 * base.spec.scale, target_modules=names, lora_dropout=0.0, fan_in_fan_out=transposed
    )
    reference = copy.copy(base)
    reference.net, reference.head = (
        peft.inject_adapter_in_model(config, copy.deepcopy(base.net)).eval(),
        copy.deepcopy(base.head),
    )
    reference.net.requires_grad_(False)
    pairs = {
        f"{name}.lora_{f}": reference.net.get_submodule(f"{name}.lora_{f}.default").weight
        for name in names
        for f in "AB"
    }
    root = reference.net if base.head is None else reference.head
    trained = pairs | {f"head.{name}": root.get_parameter(name) for name in base.head_names}
    with torch.no_grad():
        for name, value in start.tensors().items():
            trained[name].copy_(value)
    encoded = kind.encode(base, range(COUNT))
    for round in range(ROUNDS):
        parameters = [parameter.requires_grad_() for parameter in trained.values()]
        optimizer = torch.optim.SGD(parameters, lr=TRAIN.lr, momentum=TRAIN.momentum)
        for indices in training_batches(encoded, TRAIN, seed_for(SEED, "train", round, 0)):
            outputs = kind.outputs(reference, kind.collate(base, [encoded.examples[i] for i in indices]))
            (outputs.loss_sums.sum() / outputs.weights.sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
        yield {name: parameter.detach() for name, parameter in trained.items()}
