"""Client work against plain references: a bare peft loop, an unbatched loop, gradients by hand."""

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import bases
import numpy as np
import peft
import pytest
import tiny_models
import torch
import transformers
from factories import bits
from torch import Tensor, nn
from torch.testing import assert_close

from hellora.client.batches import WINDOW, shuffled_batches, training_batches
from hellora.client.evaluation import autocast, evaluate, evaluation_batches, fisher_scores, sum_of_squares
from hellora.client.train import TrainingError, train_client
from hellora.client.work import ClientWork
from hellora.core.exchange import ClientTask, Outputs, Policy, TrainSettings
from hellora.core.types import Adapter, AdapterSpec, LoraPair, ModuleSpec
from hellora.methods.context import Scores
from hellora.methods.local_training.layer_scores import LayerScores
from hellora.model.resident import BaseModel
from hellora.model.settings import Kind, ModelSettings
from hellora.tasks import Batch, Columns, Encoded, Example, Task
from hellora.tasks.causal_lm import CausalLM
from hellora.tasks.sequence_classification import SequenceClassification

KIND = SequenceClassification()
SCORES = "layer_scores/scores"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers without dropout."""
    return tiny_models.save_bert(tmp_path_factory.mktemp("bert"), **bases.NO_DROPOUT)


@pytest.fixture(scope="module")
def base(folder: Path) -> BaseModel:
    return bases.load(folder)


# ----------------------------------------------------------------------------------------------------------- training


def bare_loop(task: ClientTask, base: BaseModel, folder: Path, rows: Any, trained: Sequence[int]) -> Adapter:
    """The same training with plain transformers, peft and torch; `trained` are the layers."""
    spec, adapter, settings = base.spec, task.adapter, task.train
    config = peft.LoraConfig(
        r=spec.max_rank, lora_alpha=spec.scale * spec.max_rank, target_modules=[m.name for m in spec.modules]
    )
    model = peft.get_peft_model(transformers.AutoModel.from_pretrained(str(folder)), config).train()
    head = nn.Linear(32, len(bases.LABELS))
    factors: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
    with torch.no_grad():
        for module in spec.modules:
            lora = model.get_submodule(f"base_model.model.{module.name}")
            factors[module.name] = (lora.lora_A["default"].weight, lora.lora_B["default"].weight)
            pair = adapter.pairs[module.name]
            for parameter, value in zip(factors[module.name], (pair.A, pair.B), strict=True):
                parameter.copy_(value)
                parameter.requires_grad_(module.layer in trained)
        head.weight.copy_(adapter.head["weight"])
        head.bias.copy_(adapter.head["bias"])
    parameters = [p for p in model.parameters() if p.requires_grad]
    if task.head == "frozen":
        head.requires_grad_(False)
    else:
        parameters += list(head.parameters())
    if settings.optimizer == "sgd":
        optimizer: Any = torch.optim.SGD(
            parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    else:
        optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    encoded = KIND.encode(base, rows)
    for indices in training_batches(encoded, settings, task.seed):
        batch = KIND.collate(base, [encoded.examples[i] for i in indices])
        labels = batch.pop("labels")
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        loss = nn.functional.cross_entropy(head((hidden * mask).sum(1) / mask.sum(1)), labels)
        optimizer.zero_grad()
        loss.backward()
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
    pairs = {
        m.name: LoraPair(factors[m.name][0].detach(), factors[m.name][1].detach(), spec.scale)
        for m in spec.modules
        if m.layer in trained
    }
    return Adapter(pairs, {} if task.head == "frozen" else {n: p.detach() for n, p in head.named_parameters()})


# peft asks transformers 5 for an attribute by its old name
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("layers", "settings"),
    [
        ([0, 1, 2, 3], {"epochs": 2}),
        ([1, 3], {"steps": 5, "weight_decay": 0.3}),
        ([2, 3], {"clip_norm": 0.05, "lr": 1e-2}),
        ([0], {"optimizer": "sgd", "momentum": 0.9, "lr": 0.05, "weight_decay": 0.0}),
    ],
    ids=["all", "some", "clipped", "sgd"],
)
@pytest.mark.parametrize("head", ["aggregate", "frozen"])
def test_training_is_the_bare_peft_loop(
    layers: list[int], settings: dict[str, Any], head: Any, base: BaseModel, folder: Path
) -> None:
    rows = bases.texts(18)
    task = replace(bases.task_of(base, layers, **settings), head=head)
    update = train_client(task, base, KIND, rows)
    expected = bare_loop(task, base, folder, rows, layers)
    got, start = update.adapter.tensors(), task.adapter.tensors()
    assert got.keys() == expected.tensors().keys()
    for name, value in expected.tensors().items():
        assert_close(got[name], value, atol=2e-6, rtol=1e-4)
        assert (got[name] - start[name]).abs().max() > 1e-4, f"{name} must have moved"
    assert all(pair.scale == base.spec.scale for pair in update.adapter.pairs.values())
    assert (update.round, update.client, update.num_examples) == (0, 0, 18)


def test_only_the_components_of_the_row_are_trained_and_returned(base: BaseModel) -> None:
    row = bases.mixed_row(base)
    task = bases.task_of(base, row, steps=2, lr=1e-2)
    update = train_client(task, base, KIND, bases.texts(8))
    for module in base.spec.modules:
        rows = torch.tensor(row[module.layer])
        if not rows.any():
            assert module.name not in update.adapter.pairs
            continue
        received, pair = task.adapter.pairs[module.name], update.adapter.pairs[module.name]
        assert (pair.A.shape, pair.B.shape) == (received.A[rows].shape, received.B[:, rows].shape)
        assert 0 < (pair.A - received.A[rows]).abs().max() < 0.1
        assert 0 < (pair.B - received.B[:, rows]).abs().max() < 0.1


@pytest.mark.parametrize(
    ("settings", "steps"), [({"epochs": 1}, 5), ({"epochs": 3}, 15), ({"steps": 2}, 2), ({"steps": 7, "epochs": 9}, 7)]
)
def test_steps_and_epochs(settings: dict[str, int], steps: int, base: BaseModel) -> None:
    update = train_client(bases.task_of(base, [3], **settings), base, KIND, bases.texts(18))
    assert update.metrics["steps"] == steps
    assert update.metrics["seconds"] >= 0


def test_the_reported_loss_is_the_mean_over_examples(base: BaseModel) -> None:
    """A batch of 4 and a rest of 1: the mean over examples, not over batches."""
    rows = bases.texts(5)
    task = bases.task_of(base, [3], lr=1e-12)
    reported = train_client(task, base, KIND, rows).metrics["loss"]
    assert reported == pytest.approx(evaluate(task.adapter, base, KIND, rows, 5).metrics["loss"], abs=1e-5)


def gradients(base: BaseModel, task: ClientTask, rows: Any) -> tuple[dict[str, Tensor], Scores]:
    """The gradient of the mean loss over all rows by flat tensor name, and each layer's squared norm."""
    squares = np.full(base.spec.num_layers, np.nan)
    squares[task.trained.any(axis=1)] = 0
    with base.adapted(task.adapter, task.trained, train_head=True) as adapted:
        batch = KIND.collate(base, KIND.encode(base, rows).examples)
        KIND.outputs(base, batch).loss_sums.mean().backward()
        flat: dict[str, Any] = {f"head.{name}": p.grad for name, p in adapted.head.items()}
        for name, module in adapted.lora.items():
            flat[f"{name}.lora_A"], flat[f"{name}.lora_B"] = module.A.grad, module.B.grad
            for factor in (module.A, module.B):
                assert factor.grad is not None
                squares[base.spec.layer_of[name]] += float((factor.grad**2).sum())
    return flat, squares


def test_one_sgd_step_and_the_scores_by_hand(base: BaseModel) -> None:
    rows = bases.texts(4)
    task = bases.task_of(base, [1, 2], steps=1, optimizer="sgd", lr=0.1, weight_decay=0.0)
    flat, squares = gradients(base, task, rows)
    update = train_client(task, base, KIND, rows, (LayerScores(),))
    for name, value in update.adapter.tensors().items():
        assert_close(value, task.adapter.tensors()[name] - 0.1 * flat[name], atol=1e-6, rtol=1e-5)
    np.testing.assert_allclose(update.report[SCORES].numpy(), squares, rtol=1e-4)
    assert np.isnan(update.report[SCORES].numpy()).tolist() == [True, False, False, True]
    assert train_client(task, base, KIND, rows).report == {}


def test_clipping_scales_all_gradients_together_and_not_the_scores(base: BaseModel) -> None:
    rows = bases.texts(4)
    task = bases.task_of(base, [1, 2], steps=1, optimizer="sgd", lr=0.1, weight_decay=0.0, clip_norm=0.01)
    flat, squares = gradients(base, task, rows)
    norm = torch.stack([g.norm() for g in flat.values()]).norm()
    assert norm > 0.1
    update = train_client(task, base, KIND, rows, (LayerScores(),))
    for name, value in update.adapter.tensors().items():
        expected = task.adapter.tensors()[name] - 0.1 * flat[name] * 0.01 / norm
        assert_close(value, expected, atol=1e-7, rtol=1e-5)
    np.testing.assert_allclose(update.report[SCORES].numpy(), squares, rtol=1e-4)


def test_scores_are_the_mean_over_steps(base: BaseModel) -> None:
    rows = bases.texts(8)
    task = bases.task_of(base, [0, 3], lr=1e-12)
    encoded = KIND.encode(base, rows)
    batches = list(training_batches(encoded, task.train, task.seed))
    assert len(batches) == 2
    expected = np.mean([gradients(base, task, rows.select(batch))[1] for batch in batches], axis=0)
    update = train_client(task, base, KIND, rows, (LayerScores(),))
    np.testing.assert_allclose(update.report[SCORES].numpy(), expected, rtol=1e-3)


def test_a_frozen_head_is_not_returned(base: BaseModel) -> None:
    task = bases.task_of(base, [3], steps=1)
    assert train_client(replace(task, head="frozen"), base, KIND, bases.texts(4)).adapter.head == {}
    for policy in ("aggregate", "local"):
        head = train_client(replace(task, head=policy), base, KIND, bases.texts(4)).adapter.head  # type: ignore[arg-type]
        assert head.keys() == {"weight", "bias"}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_raises(value: float, base: BaseModel) -> None:
    adapter = bases.acting_adapter(base)
    broken = replace(adapter, head={name: tensor + value for name, tensor in adapter.head.items()})
    before = bits(dict(base.net.named_parameters()) | {"head": base.initial_head()["weight"]})
    with pytest.raises(TrainingError, match=r"the loss became nan at step 1: the adapter that came .* \(head weight\)"):
        train_client(bases.task_of(base, [3], broken), base, KIND, bases.texts(4))
    assert bits(dict(base.net.named_parameters()) | {"head": base.initial_head()["weight"]}) == before


def test_the_seed_decides_every_bit(tiny_bert: Path) -> None:
    """With dropout in the model and in the adapter, whatever was drawn before."""
    base = bases.load(tiny_bert, dropout=0.2)
    rows = bases.texts(12)

    def train(seed: int) -> dict[Any, Any]:
        torch.rand(3)
        before = torch.random.get_rng_state()
        update = train_client(bases.task_of(base, [1, 3], seed=seed), base, KIND, rows)
        assert torch.equal(torch.random.get_rng_state(), before)
        return bits(update.adapter.tensors())

    assert train(1) == train(1)
    assert train(1) != train(2)


def test_dropout_itself_depends_on_the_seed(tiny_bert: Path) -> None:
    base = bases.load(tiny_bert, dropout=0.2)
    rows = bases.texts(4)  # one batch, so that the order of batches says nothing
    losses = {train_client(bases.task_of(base, [1], seed=s), base, KIND, rows).metrics["loss"] for s in (1, 2, 3)}
    assert len(losses) == 3


def test_client_work_takes_the_clients_own_rows(base: BaseModel) -> None:
    rows = bases.texts(12)
    work = ClientWork(base, KIND, rows, [np.array([0, 1, 2]), np.array([4, 7, 8, 9, 11])])
    task = replace(bases.task_of(base, [2]), client=1)
    update = work.train(task)
    alone = train_client(task, base, KIND, rows.select([4, 7, 8, 9, 11]))
    assert (update.client, update.num_examples) == (1, 5)
    assert bits(update.adapter.tensors()) == bits(alone.adapter.tensors())


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_optimizer_has_what_trains_and_nothing_else(
    kind: Any, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No state and no weight decay for what is frozen."""
    import hellora.client.train

    made: list[torch.optim.Optimizer] = []
    make = hellora.client.train.make_optimizer

    def kept(parameters: list[nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
        made.append(make(parameters, settings))
        return made[-1]

    monkeypatch.setattr(hellora.client.train, "make_optimizer", kept)
    train_client(bases.task_of(base, [1], optimizer=kind, momentum=0.9 * (kind == "sgd")), base, KIND, bases.texts(4))
    parameters = [p for group in made[0].param_groups for p in group["params"]]
    assert [tuple(p.shape) for p in parameters] == [(3, 32), (32, 3), (3, 32), (32, 3), (3, 32), (3,)]
    assert len(made[0].state) == len(parameters)


def test_a_step_looks_at_the_device_once(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each look waits for all that was launched. SGD, for AdamW counts its steps on the CPU."""
    looks: list[str] = []

    def counting(name: str) -> Any:
        method = getattr(Tensor, name)

        def look(self: Tensor) -> Any:
            if sys._getframe(1).f_globals["__name__"].startswith("hellora."):  # transformers looks at masks itself
                looks.append(name)
            return method(self)

        return look

    for name in ("__float__", "__bool__", "__int__", "item", "tolist", "cpu"):
        monkeypatch.setattr(Tensor, name, counting(name))

    def count(steps: int) -> int:
        looks.clear()
        settings = {"steps": steps, "optimizer": "sgd", "clip_norm": 1.0}
        task = replace(bases.task_of(base, [1, 3], **settings), policy=Policy(micro_batch=2))
        train_client(task, base, KIND, bases.texts(12), (LayerScores(),))
        return len(looks)

    assert count(3) - count(1) == 2 * 2  # the losses, and the scores of the rule


@pytest.mark.parametrize(("precision", "enabled"), [("fp32", False), ("bf16", True)])
def test_precision_on_the_cpu(precision: str, enabled: bool, base: BaseModel) -> None:
    with autocast(base, precision):
        assert torch.is_autocast_enabled("cpu") == enabled


def test_bf16_training_stays_close_and_returns_float32(base: BaseModel, folder: Path) -> None:
    rows = bases.texts(8)
    exact = train_client(bases.task_of(base, [1, 3], steps=2), base, KIND, rows)
    for other, precision in ((base, "bf16"), (bases.load(folder, dtype="bfloat16"), "auto")):
        update = train_client(bases.task_of(other, [1, 3], steps=2, precision=precision), other, KIND, rows)
        for name, value in update.adapter.tensors().items():
            assert value.dtype == torch.float32
            assert_close(value, exact.adapter.tensors()[name], atol=5e-3, rtol=0)
        assert update.metrics["loss"] == pytest.approx(exact.metrics["loss"], rel=0.05)
        assert update.metrics["loss"] != exact.metrics["loss"]


# ------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(("count", "size"), [(1, 4), (64, 4), (301, 8), (130, 16)])
@pytest.mark.parametrize("with_lengths", [True, False])
def test_shuffled_batches_cover_every_index_once(count: int, size: int, with_lengths: bool) -> None:
    lengths = np.random.default_rng(0).integers(3, 60, count) if with_lengths else None
    batches = shuffled_batches(lengths, count, size, seed=1, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    assert sorted(map(len, batches), reverse=True) == [size] * (count // size) + [count % size] * bool(count % size)


def test_shuffled_batches_have_little_padding_and_come_in_any_order() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 1024)

    def padding(batches: Sequence[Any]) -> int:
        return sum(int(lengths[batch].max() * len(batch) - lengths[batch].sum()) for batch in batches)

    grouped = shuffled_batches(lengths, 1024, 8, seed=1, epoch=0)
    plain = shuffled_batches(None, 1024, 8, seed=1, epoch=0)
    assert padding(grouped) < 0.3 * padding(plain)
    one_window = shuffled_batches(lengths, 8 * WINDOW, 8, seed=1, epoch=0)
    widths = [lengths[batch].max() for batch in one_window]
    assert all(np.ptp(lengths[batch]) <= 60 // 4 for batch in one_window), "sorted as a whole"
    assert abs(np.corrcoef(widths, np.arange(len(widths)))[0, 1]) < 0.5, "but short texts do not all come first"


def test_shuffled_batches_depend_on_seed_and_epoch_only() -> None:
    lengths = np.arange(64) % 7

    def order(seed: int, epoch: int) -> list[int]:
        np.random.default_rng().random()
        flat: list[int] = np.concatenate(shuffled_batches(lengths, 64, 4, seed, epoch)).tolist()
        return flat

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_epochs_and_steps_go_on_through_the_data() -> None:
    encoded = Encoded([{}] * 10)
    expected = [b.tolist() for epoch in range(2) for b in shuffled_batches(None, 10, 4, 5, epoch)]
    by_epochs = training_batches(encoded, TrainSettings(batch_size=4, epochs=2), 5)
    assert [b.tolist() for b in by_epochs] == expected
    by_steps = training_batches(encoded, TrainSettings(batch_size=4, steps=5), 5)
    assert [b.tolist() for b in by_steps] == expected[:5]


def test_evaluation_batches_go_by_length() -> None:
    encoded = Encoded([{}] * 5, np.array([9, 2, 5, 2, 1]))
    assert [b.tolist() for b in evaluation_batches(encoded, 2)] == [[4, 1], [3, 2], [0]]
    assert [b.tolist() for b in evaluation_batches(Encoded([{}] * 3), 2)] == [[0, 1], [2]]


# ---------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_evaluate_is_the_unbatched_loop(batch_size: int, tiny_bert: Path) -> None:
    """With dropout in the model: it must be off."""
    base = bases.load(tiny_bert, dropout=0.3)
    rows = bases.texts(30)
    adapter = bases.acting_adapter(base)
    net = bases.with_dense_weights(base, adapter)
    losses, hits = [], []
    with torch.no_grad():
        for row in rows:
            ids = base.processor(row["text"], return_tensors="pt")
            logits = adapter.head["weight"] @ net(**ids).last_hidden_state[0].mean(0) + adapter.head["bias"]
            losses.append(-float(logits.log_softmax(0)[row["label"]]))
            hits.append(int(logits.argmax()) == row["label"])
    evaluation = evaluate(adapter, base, KIND, rows, batch_size)
    metrics = evaluation.metrics
    assert metrics["loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert metrics["accuracy"] == pytest.approx(np.mean(hits))
    assert 0 < metrics["accuracy"] < 1
    assert metrics.keys() == {"loss", "accuracy", "macro_f1", "micro_f1"}
    for label, recall in evaluation.per_class.recall.items():
        assert recall == pytest.approx(
            np.mean([hit for hit, row in zip(hits, rows, strict=True) if row["label"] == label])
        )
    assert len(evaluation.per_class.recall) == 3


def test_evaluation_of_a_language_model_is_by_token(tiny_llama: Path) -> None:
    kind = CausalLM(answers=1, answer_tokens=3)
    base = bases.load(tiny_llama, kind)
    rows = bases.Dataset.from_dict(
        {"prompt": ["the boat", "a star"], "response": ["wave", "near the old field and the new moon"]}
    )
    net = bases.with_dense_weights(base, bases.acting_adapter(base))
    total, tokens = 0.0, 0
    with torch.no_grad():
        for example in kind.encode(base, rows).examples:
            count = sum(label != -100 for label in example["labels"])
            total += count * float(net(**kind.collate(base, [example])).loss)
            tokens += count
    evaluation = evaluate(bases.acting_adapter(base), base, kind, rows, 2)
    metrics = evaluation.metrics
    assert evaluation.per_class.recall == {}
    assert metrics["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(np.exp(total / tokens), rel=1e-4)
    assert 0 <= metrics["rouge_l"] <= 1


# ------------------------------------------------------------------------------------------------------ Fisher scores


class Linears(nn.Module):
    """y = W1 W0 x; blocks are named block.0, block.1."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(3)
        self.block = nn.ModuleList([nn.Module(), nn.Module()])
        for block, (d_in, d_out) in zip(self.block, ((4, 5), (5, 3)), strict=True):
            block.lin = nn.Linear(d_in, d_out, bias=False)
            block.lin.weight = nn.Parameter(torch.randn(d_out, d_in, generator=rng), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block.lin(x)  # type: ignore[operator]
        return x


@dataclass(frozen=True)
class Regression(Task):
    """Half the squared error, on one token per example, or on a merged (batch, d)."""

    merged: bool = False
    columns: ClassVar[Columns] = "text"

    def kind(self) -> Kind:
        return "features"

    def load(self, settings: ModelSettings, labels: Sequence[str], seed: int, weights: bool = True) -> BaseModel:
        modules = (ModuleSpec("block.0.lin", 0, 4, 5), ModuleSpec("block.1.lin", 1, 5, 3))
        return BaseModel(Linears(), AdapterSpec(modules, ("block.0", "block.1"), 2, 1.5), None, dropout=0.5)

    def encode(self, base: BaseModel, rows: Any) -> Encoded:
        return Encoded(rows)

    def collate(self, base: BaseModel, examples: Sequence[Example]) -> Batch:
        return {name: torch.stack([example[name] for example in examples]) for name in ("x", "y")}

    def logits(self, base: BaseModel, batch: Batch) -> Tensor:
        x = batch["x"] if self.merged else batch["x"].unsqueeze(1)
        return base.net(x).reshape(len(x), -1)  # type: ignore[no-any-return]

    def score(self, logits: Tensor, batch: Batch) -> Outputs:
        return Outputs(0.5 * (logits - batch["y"]).square().sum(1), torch.ones(len(logits)))


def points(count: int) -> list[Example]:
    rng = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(4, generator=rng), "y": torch.randn(3, generator=rng)} for _ in range(count)]


def analytic_scores(base: BaseModel, adapter: Adapter, rows: Sequence[Example]) -> list[float]:
    """W = W⁰ + sBA, h = W₀x, e = W₁h - y: ∂f/∂W₁ = ehᵀ, ∂f/∂W₀ = W₁ᵀexᵀ; with G = ∂f/∂W, ∂f/∂B = sGAᵀ, ∂f/∂A = sBᵀG."""
    pairs = [adapter.pairs["block.0.lin"], adapter.pairs["block.1.lin"]]
    dense = [base.net.get_submodule(f"block.{j}.lin").weight + p.scale * p.B @ p.A for j, p in enumerate(pairs)]
    scores = [0.0, 0.0]
    for row in rows:
        h = dense[0] @ row["x"]
        error = dense[1] @ h - row["y"]
        for j, G in enumerate((torch.outer(dense[1].T @ error, row["x"]), torch.outer(error, h))):
            for gradient in (pairs[j].scale * G @ pairs[j].A.T, pairs[j].scale * pairs[j].B.T @ G):
                scores[j] += float(gradient.square().sum()) / len(rows)
    return scores


@pytest.mark.parametrize("merged", [False, True], ids=["copies", "merged batch"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_fisher_scores_are_the_analytic_value(merged: bool, batch_size: int) -> None:
    kind = Regression(merged)
    base = kind.load(ModelSettings(), (), 0)
    rng = torch.Generator().manual_seed(2)
    pairs = {
        m.name: LoraPair(torch.randn(2, m.d_in, generator=rng), torch.randn(m.d_out, 2, generator=rng), 1.5)
        for m in base.spec.modules
    }
    rows = points(7)
    got = fisher_scores(Adapter(pairs), base, kind, kind.encode(base, rows), batch_size)
    np.testing.assert_allclose(got, analytic_scores(base, Adapter(pairs), rows), rtol=1e-4)


def test_a_merged_batch_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import hellora.client.evaluation

    sizes: list[int | None] = []

    def counted(
        adapter: Adapter, base: BaseModel, kind: Task, encoded: Encoded, size: int | None, *dims: Mapping[str, int]
    ) -> Scores:
        sizes.append(size)
        return sum_of_squares(adapter, base, kind, encoded, size, *dims)

    monkeypatch.setattr(hellora.client.evaluation, "sum_of_squares", counted)
    for merged in (False, True):
        kind = Regression(merged)
        base = kind.load(ModelSettings(), (), 0)
        fisher_scores(bases.acting_adapter(base), base, kind, kind.encode(base, points(4)), 2)
    assert sizes == [2, None]


def loop_scores(adapter: Adapter, base: BaseModel, kind: Task, rows: Any) -> Scores:
    """One example at a time, on plain dense weights, by the chain rule from ∂f/∂W."""
    net = bases.with_dense_weights(base, adapter)
    reference = copy.copy(base)
    reference.net = net
    weights = {m.name: net.get_submodule(m.name).weight.requires_grad_() for m in base.spec.modules}
    scores = np.zeros(base.spec.num_layers)
    encoded = kind.encode(base, rows)
    for example in encoded.examples:
        outputs = kind.outputs(reference, kind.collate(base, [example]))
        grads = torch.autograd.grad(outputs.loss_sums.sum() / outputs.weights.sum(), list(weights.values()))
        for name, G in zip(weights, grads, strict=True):
            pair = adapter.pairs[name]
            both = float((pair.scale * G @ pair.A.T).square().sum() + (pair.scale * pair.B.T @ G).square().sum())
            scores[base.spec.layer_of[name]] += both
    return scores / len(encoded)


@pytest.mark.parametrize(
    ("model", "kind"),
    [("tiny_bert", KIND), ("tiny_bert_with_head", SequenceClassification(head_type="own")), ("tiny_llama", CausalLM())],
    ids=["bert", "own head", "llama"],
)
def test_fisher_scores_are_the_example_by_example_loop(model: str, kind: Task, request: pytest.FixtureRequest) -> None:
    base = bases.load(request.getfixturevalue(model), kind, dropout=0.4)
    texts = bases.texts(10)
    rows = texts
    if isinstance(kind, CausalLM):
        rows = bases.Dataset.from_dict({"prompt": ["the old boat"] * 10, "response": texts["text"][:]})
    adapter = bases.acting_adapter(base)
    unchanged = bits(dict(base.net.named_parameters()))
    got = fisher_scores(adapter, base, kind, kind.encode(base, rows), 4)
    np.testing.assert_allclose(got, loop_scores(adapter, base, kind, rows), rtol=1e-3)
    np.testing.assert_allclose(sum_of_squares(adapter, base, kind, kind.encode(base, rows), None) / 10, got, rtol=1e-4)
    assert bits(dict(base.net.named_parameters())) == unchanged
    assert got.shape == (base.spec.num_layers,)
    assert len(set(got)) == len(got)
