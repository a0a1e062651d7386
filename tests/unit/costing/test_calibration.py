"""Fit that were counted on a few blocks say what a step of the whole model holds, for any row and policy."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import bases
import numpy as np
import pytest
import tiny_models
import torch
from datasets import Dataset
from factories import method_of
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import SwinConfig, SwinForImageClassification, ViTImageProcessor

from hellora.budgets.coefficients import ActivationPolicy
from hellora.budgets.cost import CostModel, Work
from hellora.budgets.planner import RESERVE
from hellora.client.train import train_client
from hellora.core.codec import wire_bytes
from hellora.core.exchange import ClientTask, Policy, TensorSpec, TrainSettings, WireFormat
from hellora.costing.calibration import CountedCoefficients, Sample, calibrate, sample_of
from hellora.costing.traced_rows import Shape, Tracer
from hellora.costing.tracing import HeldBytes, without_values
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.everything import Everything
from hellora.methods.dispatchers.bypass import Bypass
from hellora.methods.dispatchers.truncate import Truncate
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.sharing import answered_bytes
from hellora.methods.strategies import Method
from hellora.model import output_layer
from hellora.model.resident import BaseModel
from hellora.tasks import Task
from hellora.tasks.causal_lm import CausalLM
from hellora.tasks.image_classification import ImageClassification

METHOD = method_of(Everything(), Whole(), ParticipantMean())
TRAIN = TrainSettings(batch_size=8)
RANK = 4
PLAIN = [Policy(), Policy(bf16=True)]
MIXED = [
    Policy(recompute="frozen"),
    Policy(recompute="all"),
    Policy(int8_activations=True),
    Policy(recompute="frozen", int8_activations=True),
    Policy(recompute="all", int8_activations=True, bf16=True),
]


@dataclass(frozen=True, eq=False)
class Known:
    """A cost model, and the model that it speaks of."""

    cost: CostModel
    tracer: Tracer

    def held(self, ranks: Any, policy: Policy, examples: int) -> int:
        """The bytes that a step of the whole model holds."""
        return self.tracer.step(np.arange(RANK) < ranks[:, None], policy, examples).peak

    def predicted(self, ranks: Any, policy: Policy, examples: int) -> float:
        return self.cost.step_bytes(ranks, self.cost.steps[ActivationPolicy.of(policy)], examples)

    def error(self, ranks: Any, policy: Policy, examples: int) -> float:
        """Of the predicted bytes of a step, as a share of those that it holds."""
        return self.predicted(ranks, policy, examples) / self.held(ranks, policy, examples) - 1

    @property
    def sample(self) -> Sample:
        assert isinstance(self.cost.steps, CountedCoefficients)
        return self.cost.steps.sample


def known(load: Callable[[], BaseModel], task: Task, tokens: int, method: Method = METHOD) -> Known:
    shape, mode, base = Shape(8, tokens), FakeTensorMode(allow_non_fake_inputs=True), load()
    for module in (base.net, base.head):
        if module is not None:
            without_values(module, mode, "cpu")
    cost = calibrate(load(), task, shape, method, TRAIN)
    return Known(cost, Tracer(base, task, shape, method, TRAIN, "cpu", mode))


def bare(folder: Path, task: Task) -> Callable[[], BaseModel]:
    return lambda: bases.load(folder, task, rank=RANK)


def save_swin(folder: Path) -> Path:
    """Two stages of two blocks, of 16 and 32 numbers a token."""
    config = SwinConfig(image_size=16, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[1, 2], window_size=2)
    config.num_labels = 3
    SwinForImageClassification(config).save_pretrained(str(folder))
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module", params=["bert", pytest.param("swin", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Known:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "bert":
        task: Task = bases.MEAN_POOLING
        return known(bare(tiny_models.save_bert(folder, num_hidden_layers=6), task), task, 48)
    task = ImageClassification()
    return known(bare(save_swin(folder), task), task, 1)


def random_ranks(rng: np.random.Generator, layers: int) -> Any:
    ranks = np.where(rng.random(layers) < rng.choice([0.3, 0.7, 1.0]), rng.integers(1, RANK + 1, layers), 0)
    ranks[rng.integers(layers)] = RANK
    return ranks


def test_random_rows(model: Known) -> None:
    """Plain training to 2 %; mixes of recomputation and int8 to 8 %, and never below by more than the reserve."""
    rng = np.random.default_rng(0)
    errors = []
    for policy in PLAIN + MIXED:
        for _ in range(3):
            ranks, examples = random_ranks(rng, model.cost.spec.num_layers), int(rng.integers(1, 9))
            error = model.error(ranks, policy, examples)
            assert -RESERVE < error < 0.08, (ranks, policy, examples)
            assert abs(error) < 0.02 or policy in MIXED, (ranks, policy, examples)
            errors.append(abs(error))
    assert np.median(errors) < 0.01


def test_the_shallowest_trained_layer_decides(model: Known) -> None:
    """The trace agrees: the deeper it lies, the less is held."""
    layers = model.cost.spec.num_layers
    coefficients = model.cost.steps[ActivationPolicy()]
    rows = np.eye(layers, dtype=np.int64) * RANK
    held = [model.cost.step_bytes(row, coefficients, 8) for row in rows]
    assert held == sorted(held, reverse=True)


def test_two_blocks_of_a_kind_are_counted(model: Known) -> None:
    sample, layers = model.sample, model.cost.spec.num_layers
    if "Swin" in type(model.tracer.base.net).__name__:
        assert sample.kinds == (0, 0, 1, 1)
        assert sample.of_kind == ((0, 1), (2, 3))
    else:
        assert sample.kinds == (0,) * layers
        assert sample.of_kind == ((0, 1),)


def test_blocks_that_are_left_out_come_back(tiny_bert: Path) -> None:
    base = bases.load(tiny_bert)
    spec, before = base.spec, [base.net.get_submodule(name) for name in base.spec.layers]
    sample = sample_of(base, 1)
    assert sample.of_kind == ((0,),)
    assert len(base.spec.layers) == 1
    base.spec = spec
    sample = sample_of(base, 4)
    assert sample.of_kind == ((0, 1, 2, 3),)
    assert [base.net.get_submodule(name) for name in spec.layers] == before


@pytest.mark.parametrize("dispatcher", [Truncate(), Bypass()], ids=["truncate", "bypass"])
def test_other_dispatchers(dispatcher: Any, tmp_path: Path) -> None:
    method = replace(METHOD, dispatcher=dispatcher, head="frozen", trains="B")
    folder = tiny_models.save_bert(tmp_path / "bert", num_hidden_layers=6)
    model = known(bare(folder, bases.MEAN_POOLING), bases.MEAN_POOLING, 48, method)
    rng = np.random.default_rng(1)
    assert model.cost.head_parameters == 0
    for policy in (Policy(), *MIXED[:2]):
        ranks = random_ranks(rng, 6)
        assert -RESERVE < model.error(ranks, policy, 5) < 0.08


def test_what_a_model_is_made_of(tiny_bert: Path) -> None:
    base = bases.load(tiny_bert)
    cost = known(lambda: bases.load(tiny_bert), bases.MEAN_POOLING, 16).cost
    assert cost.weights_bytes == base.num_bytes
    assert cost.weight_item_bytes == 4
    assert cost.head_parameters == 3 * 32 + 3
    assert cost.optimizer_numbers == 2
    assert (cost.hidden_bytes, cost.tokens) == (16 * 32 * 4, 16)
    linear = 2 * 16 * (4 * 32 * 32 + 2 * 32 * 48)  # a fused attention kernel is not counted
    assert cost.block_operations.tolist() == [linear] * 4


@pytest.mark.parametrize("wire", ["fp32", "bf16", "int8"])
def test_uplink_is_what_travels(wire: WireFormat, tiny_bert: Path) -> None:
    base = bases.load(tiny_bert)
    cost = calibrate(bases.load(tiny_bert), bases.MEAN_POOLING, Shape(8, 16), METHOD, TRAIN, wire=wire)
    task = bases.task_of(base, bases.mixed_row(base), steps=1)
    update = train_client(task, base, bases.MEAN_POOLING, bases.texts(4))
    predicted = cost.uplink(task.trained.sum(axis=1))
    assert predicted == wire_bytes(map(TensorSpec.of, update.adapter.tensors().values()), wire)
    assert predicted == answered_bytes(update, "both", METHOD, wire)


def test_peak_of_real_training(tiny_bert: Path) -> None:
    """All of it: what stands and one step, against the tensors of `train_client`."""
    base = bases.load(tiny_bert)
    rows = bases.texts(8)
    lengths = bases.MEAN_POOLING.encode(base, rows).lengths
    assert lengths is not None
    cost = known(lambda: bases.load(tiny_bert), bases.MEAN_POOLING, int(lengths.max())).cost
    for policy in (Policy(), Policy(merge=False), Policy(micro_batch=2)):
        task = replace(bases.task_of(base, [1, 3], batch_size=8, steps=2), policy=policy)
        predicted = cost.peak_bytes(np.array([0, 3, 0, 3]), policy, Work(8, 8)) - cost.weights_bytes
        assert predicted == pytest.approx(held_in_training(task, base, rows), rel=0.03)


@pytest.mark.parametrize(("name", "tied"), [("embed_tokens", True), ("lm_head", False)])
def test_modules_that_train_whole(name: str, tied: bool, tmp_path: Path) -> None:
    """Embeddings want a gradient through all blocks, whatever row trains; an output layer does not. Both are trained,
    stepped on and sent whole, and what is tied is so once."""
    folder = tiny_models.save_llama(tmp_path, tie_word_embeddings=tied, num_hidden_layers=5, vocab_size=200)
    task = CausalLM(loss_on="all")  # a prediction is for batches of which every token is learned

    def load() -> BaseModel:
        return bases.load(folder, task, rank=RANK, modules_to_save=(name,))

    base, rows = load(), bases.instructions(["we saw the boat"] * 8, ["a wave is near"] * 8)
    lengths = task.encode(base, rows).lengths
    assert lengths is not None
    model, rng = known(load, task, int(lengths.max())), np.random.default_rng(2)
    assert model.cost.head_parameters == 200 * 32
    assert model.cost.trains_below == tied
    for policy, most in ((Policy(), 0.05), (Policy(recompute="frozen"), 0.08)):
        for _ in range(2):
            ranks = random_ranks(rng, 5)
            assert -most < model.error(ranks, policy, int(rng.integers(1, 9))) < most, (ranks, policy)
    asked, cost = bases.task_of(base, [3], batch_size=8, steps=2), model.cost
    predicted = cost.peak_bytes(np.array([0, 0, 0, RANK, 0]), Policy(), Work(8, 8)) - cost.weights_bytes
    held = held_in_training(asked, base, rows, task)
    assert held <= predicted < 1.12 * held
    update = train_client(asked, base, task, rows)
    assert cost.uplink(np.array([0, 0, 0, RANK, 0])) == answered_bytes(update, "both", METHOD, "fp32")


@pytest.mark.parametrize("how", [Policy(), Policy(int8_activations=True)], ids=["plain", "int8"])
def test_parts_of_a_batch_and_a_prefix_cache_stay_within_the_prediction(how: Policy, tmp_path: Path) -> None:
    """Two epochs: the second is fed from the cache. Texts of one length: the prediction can be close."""
    folder = tiny_models.save_bert(tmp_path / "bert", hidden_size=64)
    base, count = bases.load(folder), 16
    rows = Dataset.from_dict({"text": ["we saw a boat " * 12] * count, "label": [0] * count})
    tokens = 2 + 4 * 12
    cost = known(lambda: bases.load(folder), bases.MEAN_POOLING, tokens).cost
    task, ranks = bases.task_of(base, [3], batch_size=8, epochs=2, same_batches=True), np.array([0, 0, 0, 3])
    for size, kept in product((1, 2, 4), ("memory", "disk")):
        policy = replace(how, micro_batch=size, prefix_cache=kept)  # type: ignore[arg-type]
        held = held_in_training(replace(task, policy=policy), base, rows)
        predicted = cost.peak_bytes(ranks, policy, Work(count, 8, 2)) - cost.weights_bytes
        assert held <= predicted < 1.08 * held, policy


def held_in_training(task: ClientTask, base: BaseModel, rows: Dataset, kind: Task = bases.MEAN_POOLING) -> int:
    """The most bytes of tensors that the client holds besides the base."""
    modules = [base.net] if base.head is None else [base.net, base.head]
    weights = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    with HeldBytes([*weights, *task.adapter.tensors().values()]) as held:
        train_client(task, base, kind, rows)
    return held.peak + task.adapter.num_bytes


@pytest.mark.parametrize("examples_in_a_chunk", [0.5, 2.5, 4, 20])
def test_logits_in_chunks(examples_in_a_chunk: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many examples no more logits are held than of a chunk; of fewer than fill one, no more is held than said."""
    tokens, classes = 33, 2048
    chunk_bytes = int(examples_in_a_chunk * (tokens - 1)) * 4 * classes
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", chunk_bytes)
    folder = tiny_models.save_llama(tmp_path / "llama", vocab_size=classes)
    model = known(bare(folder, CausalLM()), CausalLM(), tokens)
    ranks = np.full(3, RANK)
    for examples in (1, 2, 3, 5, 8):
        held = model.held(ranks, Policy(), examples)
        error = model.predicted(ranks, Policy(), examples) - held
        if examples >= examples_in_a_chunk or examples_in_a_chunk > 8:
            assert abs(error) < 0.03 * held, examples
        assert -0.03 * held < error < 3.5 * chunk_bytes, examples
