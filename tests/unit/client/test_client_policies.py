"""A client obeys its policy: the same step of the optimizer in less memory, and a base that comes back untouched."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import bases
import numpy as np
import pytest
import tiny_models
import torch
from datasets import Dataset, Features, Image, Value
from factories import bits, dispatched
from PIL import Image as Pillow
from torch import Tensor
from torch.testing import assert_close
from transformers import GPT2Config, GPT2Model

import hellora.client.train
from hellora.client.train import TrainingError, train_client, train_encoded
from hellora.core.algebra import new_pair
from hellora.core.exchange import ClientTask, Outputs, Policy
from hellora.core.types import Mask
from hellora.methods.allocators.geometric import Pattern, pattern_layers
from hellora.methods.dispatchers.bypass import Bypass
from hellora.methods.local_training.hetlora import Hetlora
from hellora.methods.local_training.layer_scores import LayerScores
from hellora.model.load import adapter_spec
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.tasks import Batch, Example, Task
from hellora.tasks.causal_lm import IGNORED, CausalLM
from hellora.tasks.image_classification import ImageClassification

RECOMPUTE = [Policy(recompute="frozen"), Policy(recompute="all")]
EVERYTHING = Policy(recompute="all", int8_activations=True, bf16=True, micro_batch=3, merge=False)


@dataclass(frozen=True)
class Family:
    """A tiny model with dropout, and rows for it."""

    base: BaseModel
    kind: Task
    rows: Dataset


def images(count: int) -> Dataset:
    rng = np.random.default_rng(0)
    pixels = [Pillow.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)) for _ in range(count)]
    features = Features({"image": Image(), "label": Value("int64")})
    return Dataset.from_dict({"image": pixels, "label": [i % 3 for i in range(count)]}, features=features)


def instructions(count: int) -> Dataset:
    """Responses of 1 to 5 words."""
    rows = tiny_models.sentences(count)
    responses = [" ".join(text.split()[: 1 + i % 5]) for i, (text, _) in enumerate(rows)]
    return Dataset.from_dict({"prompt": [text for text, _ in rows], "response": responses})


@pytest.fixture(scope="module", params=["bert", "vit", "llama"])
def family(request: pytest.FixtureRequest, tiny_bert: Path, tiny_vit: Path, tiny_llama: Path) -> Family:
    if request.param == "bert":
        return Family(bases.load(tiny_bert, dropout=0.2), bases.MEAN_POOLING, bases.texts(8))
    if request.param == "vit":
        return Family(bases.load(tiny_vit, ImageClassification(), dropout=0.2), ImageClassification(), images(8))
    return Family(bases.load(tiny_llama, CausalLM(), dropout=0.2), CausalLM(), instructions(8))


@pytest.fixture
def without_dropout(family: Family) -> Family:
    """The same weights; no module of the network drops anything, trained or not."""
    base = family.base
    quiet = BaseModel(base.net, base.spec, base.processor, dropout=0.0, head=base.head, head_modules=base.head_modules)
    quiet.train_mode = lambda *_: None  # type: ignore[method-assign]
    return replace(family, base=quiet)


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> Callable[[Family, ClientTask], list[Tensor]]:
    """The gradients of a client's first step, in the order of its parameters."""
    seen: list[list[Tensor]] = []

    class Watching(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            seen.append([p.grad.clone() for group in self.param_groups for p in group["params"]])

    monkeypatch.setattr(hellora.client.train, "make_optimizer", lambda parameters, _: Watching(parameters, lr=0.0))

    def of(family: Family, task: ClientTask) -> list[Tensor]:
        seen.clear()
        train_client(task, family.base, family.kind, family.rows)
        return seen[0]

    return of


def task_of(family: Family, layers: Sequence[int] | Mask, policy: Policy = Policy(), **settings: Any) -> ClientTask:
    return replace(bases.task_of(family.base, layers, **{"batch_size": 8, "steps": 1, **settings}), policy=policy)


def assert_equal(got: Sequence[Tensor], expected: Sequence[Tensor], relative: float = 1e-6) -> None:
    """Every tensor to `relative` of its norm."""
    for a, b in zip(got, expected, strict=True):
        assert b.norm() > 0
        assert (a - b).norm() <= relative * b.norm()


# ----------------------------------------------------------------------------------------------------------- run again


@pytest.mark.parametrize("policy", RECOMPUTE, ids=["frozen", "all"])
@pytest.mark.parametrize("layers", [[0], [1], [0, 2], [0, 1, 2]], ids=str)
def test_recomputed_gradients_are_the_same_with_dropout(
    layers: list[int], policy: Policy, family: Family, gradients: Any
) -> None:
    expected = gradients(family, task_of(family, layers))
    assert_equal(gradients(family, task_of(family, layers, policy)), expected)
    other = gradients(family, task_of(family, layers, seed=8))
    assert any((a - b).norm() > 1e-3 * b.norm() for a, b in zip(other, expected, strict=True)), "dropout is on"


@pytest.mark.parametrize(("how", "runs"), [("none", [1, 1, 1, 1]), ("frozen", [1, 1, 2, 1]), ("all", [1, 2, 2, 2])])
def test_which_blocks_run_twice(how: Any, runs: list[int], tiny_bert: Path) -> None:
    base = bases.load(tiny_bert)
    calls, outside = [0] * 4, [0] * 4

    def count(counts: list[int], layer: int) -> Any:
        def hook(*_: Any) -> None:
            counts[layer] += 1

        return hook

    queries = [f"{name}.attention.self.query" for name in base.spec.layers]
    hooks = [base.net.get_submodule(n).register_forward_pre_hook(count(calls, i)) for i, n in enumerate(queries)]
    hooks += [
        base.net.get_submodule(n).register_forward_pre_hook(count(outside, i)) for i, n in enumerate(base.spec.layers)
    ]
    task = replace(bases.task_of(base, [1, 3], steps=1), policy=Policy(recompute=how))
    train_client(task, base, bases.MEAN_POOLING, bases.texts(4))
    for hook in hooks:
        hook.remove()
    assert calls == runs
    assert outside == [1] * 4, "hooks of a block itself run once"


def test_blocks_that_are_left_out_are_not_run_again(tiny_bert: Path) -> None:
    base = bases.load(tiny_bert)
    task = bases.task_of(base, [0, 2], steps=1)
    task = replace(task, adapter=dispatched(Bypass(), task.adapter, task.trained, base.spec), bypass=True)
    plain = train_client(task, base, bases.MEAN_POOLING, bases.texts(4))
    again = train_client(replace(task, policy=Policy(recompute="all")), base, bases.MEAN_POOLING, bases.texts(4))
    for name, value in plain.adapter.tensors().items():
        assert torch.equal(again.adapter.tensors()[name], value)


@pytest.mark.parametrize("policy", RECOMPUTE, ids=["frozen", "all"])
def test_a_decoder_that_would_fill_its_cache_twice(policy: Policy) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=30, n_positions=16, n_embd=16, n_layer=3, n_head=2, n_inner=24)
    net = GPT2Model(config).eval().requires_grad_(False)
    base = BaseModel(net, adapter_spec(net, ModelSettings(rank=3)), None)
    ids = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 12, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])

    def gradient(policy: Policy) -> list[Tensor]:
        with base.adapted(bases.acting_adapter(base), bases.row_of(base, [0, 2]), policy=policy) as adapted:
            net.eval()
            torch.autograd.backward(net(input_ids=ids, attention_mask=mask).last_hidden_state.square().sum())
            return [p.grad for p in adapted.parameters if p.grad is not None]

    assert config.use_cache
    assert_equal(gradient(policy), gradient(Policy()))
    assert config.use_cache


# ----------------------------------------------------------------------------------------------- what stays in memory


def kept(base: BaseModel, layers: Sequence[int], policy: Policy, forward: Callable[[], Any]) -> int:
    """Bytes of the storages that autograd keeps of a forward pass; parameters, folded weights and buffers excluded."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with base.adapted(bases.acting_adapter(base), bases.row_of(base, layers), policy=policy):
        base.net.eval()  # no dropout
        weights = {p.untyped_storage().data_ptr() for p in (*base.net.parameters(), *base.net.buffers())}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = forward()  # alive until the end, so that no address is used twice
        assert output.requires_grad
    return sum(storages.values())


def forwards(family: Family) -> Callable[[], Any]:
    """A forward pass up to the logits."""
    encoded = family.kind.encode(family.base, family.rows)
    batch = family.kind.collate(family.base, [encoded.examples[i] for i in range(8)])
    return lambda: family.kind.logits(family.base, batch)


def test_a_recomputed_block_keeps_its_input_alone(family: Family) -> None:
    """With the first block trained and all others frozen, each of those keeps as many bytes as a hidden state has."""
    base, forward = family.base, forwards(family)
    states: list[int] = []
    last = base.spec.num_layers - 1
    block = base.net.get_submodule(base.spec.layers[last])
    hook = block.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0].nbytes))
    alone = kept(base, [last], Policy(), forward)
    hook.remove()
    more = kept(base, [0], Policy(recompute="frozen"), forward) - alone - last * states[0]
    assert 0 <= more < states[0] / 5, "the mask and the positions, once for all blocks"
    assert kept(base, [0], Policy(), forward) > alone + 5 * last * states[0]
    assert kept(base, [0], Policy(recompute="all"), forward) < alone + last * states[0]


@pytest.mark.parametrize("pattern", get_args(Pattern))
def test_memory_falls_with_the_number_of_trained_layers(pattern: Pattern, tmp_path: Path) -> None:
    """The promise of Fed-HeLLo's patterns, which freezing alone does not keep."""
    family = Family(
        bases.load(tiny_models.save_bert(tmp_path, num_hidden_layers=12, intermediate_size=128)),
        bases.MEAN_POOLING,
        bases.texts(8),
    )
    forward = forwards(family)
    everything = kept(family.base, range(12), Policy(), forward)
    shares = {}
    for capacity in (6, 3):
        layers = pattern_layers(pattern, capacity, 12).tolist()
        plain, recomputed = (kept(family.base, layers, p, forward) for p in (Policy(), RECOMPUTE[0]))
        shares[capacity] = recomputed / everything
        if pattern != "inverted_triangle":
            assert plain > 0.85 * everything
    assert shares[6] <= 0.58
    assert shares[3] <= 0.36
    assert kept(family.base, range(12), Policy(recompute="all"), forward) <= 0.14 * everything


# -------------------------------------------------------------------------------------------------------- kept as int8


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """BERT as wide as MiniLM, for 4 layers."""
    sizes = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    folder = tiny_models.save_bert(tmp_path_factory.mktemp("wide"), **sizes, **bases.NO_DROPOUT)
    return Family(bases.load(folder), bases.MEAN_POOLING, bases.texts(8))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).double()


@pytest.mark.parametrize("recompute", ["none", "frozen", "all"])
def test_int8_gradients_at_a_realistic_width(recompute: Any, wide: Family, gradients: Any) -> None:
    exact = flat(gradients(wide, task_of(wide, [0, 2])))
    policy = Policy(recompute=recompute, int8_activations=True)
    got = [flat(gradients(wide, task_of(wide, [0, 2], policy))) for _ in range(2)]
    assert torch.equal(*got)
    assert torch.cosine_similarity(got[0], exact, dim=0) >= 0.999
    assert 1e-4 < (got[0] - exact).norm() / exact.norm() < 0.03
    assert not torch.equal(flat(gradients(wide, task_of(wide, [0, 2], policy, seed=8))), got[0])


def test_int8_errors_average_out_over_seeds(wide: Family, gradients: Any) -> None:
    """The mean of 16 gradients is about four times closer than one."""
    exact = flat(gradients(wide, task_of(wide, [0, 2])))
    policy = Policy(int8_activations=True)
    drawn = torch.stack([flat(gradients(wide, task_of(wide, [0, 2], policy, seed=seed))) for seed in range(16)])
    typical = (drawn - exact).norm(dim=1).mean()
    assert (drawn.mean(0) - exact).norm() < 0.35 * typical


def test_int8_in_training_gives_every_bit_again(wide: Family) -> None:
    task = replace(task_of(wide, [1, 3], Policy(int8_activations=True), steps=3), seed=3)
    results = [train_client(task, wide.base, wide.kind, wide.rows).adapter.tensors() for _ in range(2)]
    assert bits(results[0]) == bits(results[1])
    plain = train_client(replace(task, policy=Policy()), wide.base, wide.kind, wide.rows).adapter.tensors()
    assert bits(plain) != bits(results[0])


# ------------------------------------------------------------------------------------------------------- fewer at once


@pytest.mark.parametrize("size", [1, 3, 8, 100])
@pytest.mark.parametrize("layers", [[0, 2], [1]], ids=str)
def test_micro_batches_are_one_step(size: int, layers: list[int], without_dropout: Family, gradients: Any) -> None:
    family = without_dropout
    expected = gradients(family, task_of(family, layers))
    assert_equal(gradients(family, task_of(family, layers, Policy(micro_batch=size))), expected, 5e-6)


def test_micro_batches_with_a_tail_penalty_scores_and_clipping(without_dropout: Family) -> None:
    """The penalty counts once a step; scores are of the whole step's gradient; so are the loss and the clipped norm."""
    family = without_dropout
    settings = {"clip_norm": 0.1, "optimizer": "sgd", "lr": 0.1}
    task, rules = task_of(family, [0, 2], batch_size=4, steps=2, **settings), (Hetlora(0.5, 0.5), LayerScores())
    plain, parts = (
        train_client(replace(task, policy=policy), family.base, family.kind, family.rows, rules)
        for policy in (Policy(), Policy(micro_batch=3))
    )
    for name, value in plain.adapter.tensors().items():
        assert_close(parts.adapter.tensors()[name], value, atol=1e-6, rtol=1e-5)
    scores = "layer_scores/scores"
    assert_close(parts.report[scores], plain.report[scores], rtol=1e-4, atol=0, equal_nan=True)
    assert parts.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-5)
    assert parts.metrics["steps"] == plain.metrics["steps"] == 2


def test_each_micro_batch_is_as_wide_as_its_own_longest_text(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, kind, rows = bases.load(tiny_llama, CausalLM()), CausalLM(), instructions(8)
    shapes: list[tuple[int, ...]] = []
    collate = CausalLM.collate

    def watched(self: CausalLM, base: BaseModel, examples: Sequence[Example]) -> Batch:
        batch = collate(self, base, examples)
        shapes.append(tuple(batch["input_ids"].shape))
        assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]
        return batch

    monkeypatch.setattr(CausalLM, "collate", watched)
    task = replace(bases.task_of(base, [1], batch_size=8, steps=1), policy=Policy(micro_batch=3))
    train_client(task, base, kind, rows)
    assert [count for count, _ in shapes] == [3, 3, 2]
    assert len({width for _, width in shapes}) > 1


@pytest.mark.parametrize("size", [None, 1])
def test_a_batch_without_anything_to_predict_is_a_step_of_no_gradient(size: int | None, tiny_llama: Path) -> None:
    base, kind = bases.load(tiny_llama, CausalLM()), CausalLM()
    rows = Dataset.from_dict({"prompt": ["the boat", "a star", "we saw"], "response": ["wave"] * 3})
    encoded = kind.encode(base, rows)
    for example in encoded.examples[:2]:
        example["labels"] = [IGNORED] * len(example["labels"])
    task = replace(
        bases.task_of(base, [1], batch_size=1 if size is None else 3, epochs=2), policy=Policy(micro_batch=size)
    )
    update = train_encoded(task, base, kind, encoded)
    assert all(value.isfinite().all() for value in update.adapter.tensors().values())


# --------------------------------------------------------------------------------------------------------------- bf16


@pytest.mark.parametrize(("precision", "has_it"), [("auto", False), ("auto", True), ("fp32", True)])
def test_bf16_whatever_the_precision_of_the_run_is_also_when_run_again(
    precision: str, has_it: bool, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hellora.client.evaluation.has_bf16", lambda _: has_it)
    base = bases.load(tiny_bert)
    seen: list[bool] = []
    query = base.net.get_submodule("encoder.layer.2.attention.self.query")
    hook = query.register_forward_hook(lambda *rest: seen.append(rest[2].dtype == torch.bfloat16))
    for policy in (Policy(bf16=True, recompute="frozen"), Policy(recompute="frozen")):
        task = replace(bases.task_of(base, [1, 3], steps=1, precision=precision), policy=policy)
        train_client(task, base, bases.MEAN_POOLING, bases.texts(4))
    hook.remove()
    of_the_run = precision == "auto" and has_it
    assert seen == [True, True, of_the_run, of_the_run]


def test_bf16_is_that_of_the_run_but_keeps_no_cast_of_a_weight(family: Family, gradients: Any) -> None:
    layers = [0, 2]
    expected = gradients(family, task_of(family, layers, precision="bf16"))
    assert_equal(gradients(family, task_of(family, layers, Policy(bf16=True))), expected)
    forward = forwards(family)

    def in_bf16() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return forward()

    exact = kept(family.base, layers, Policy(), forward)
    weights = [m.weight for m in family.base.net.modules() if isinstance(m, torch.nn.Linear)]
    casts = sum(2 * weight.numel() for weight in weights)
    with_casts, without = (kept(family.base, layers, policy, in_bf16) for policy in (Policy(), Policy(bf16=True)))
    assert with_casts - without > 0.6 * casts
    assert without < 0.85 * exact


# --------------------------------------------------------------------------------------------------- beside the weight


def test_beside_the_weight_is_the_same_function(without_dropout: Family, gradients: Any) -> None:
    """Some components of a layer trained, others frozen; and a residual everywhere."""
    family = without_dropout
    row = np.zeros((family.base.spec.num_layers, family.base.spec.max_rank), dtype=bool)
    row[0, 1], row[2] = True, True
    task = task_of(family, row)
    residual = {m.name: new_pair(m, family.base.spec, seed=5) for m in family.base.spec.modules}
    residual = {name: replace(pair, B=0.2 * torch.ones_like(pair.B), scale=1.0) for name, pair in residual.items()}
    task = replace(task, adapter=replace(task.adapter, residual=residual))
    expected = gradients(family, task)
    got = gradients(family, replace(task, policy=Policy(merge=False)))
    assert_equal(got, expected, 1e-4)
    without = gradients(family, replace(task, adapter=replace(task.adapter, residual={})))
    assert (flat(without) - flat(expected)).norm() > 1e-2 * flat(expected).norm(), "the residual acts"


def test_beside_the_weight_nothing_is_copied_or_kept(family: Family) -> None:
    base, forward = family.base, forwards(family)
    weights = {module.name: base.net.get_submodule(module.name).weight for module in base.spec.modules}
    row = bases.row_of(base, [1])
    row[0, 0] = True
    with base.adapted(bases.acting_adapter(base), row, policy=Policy(merge=False)) as adapted:
        inside = {id(p) for p in base.net.parameters()}
        assert all(id(weight) in inside for weight in weights.values())
        ranks = {m.name: len(adapted.lora[m.name].A) if m.name in adapted.lora else 0 for m in base.spec.modules}
        assert ranks == {m.name: {0: 1, 1: 3}.get(m.layer, 0) for m in base.spec.modules}
        beside = {name.removesuffix(".A").removesuffix(".base"): len(t) for name, t in base.net.named_buffers()}
        assert all(beside.get(m.name, 0) == 3 - ranks[m.name] for m in base.spec.modules)
    assert kept(base, [0], Policy(merge=False), forward) == kept(base, [0], Policy(), forward)


# ------------------------------------------------------------------------------------------------------ back as it was


def state_of(base: BaseModel) -> Any:
    modules = [base.net] if base.head is None else [base.net, base.head]
    tree = [(name, id(module), sorted(vars(module))) for root in modules for name, module in root.named_modules()]
    parameters = [(name, id(p), p.requires_grad) for root in modules for name, p in root.named_parameters()]
    values = [bits(dict(root.state_dict())) for root in modules]
    training = [module.training for root in modules for module in root.modules()]
    return tree, parameters, values, training, base.net.config.to_dict()


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize(
    "policy",
    [*RECOMPUTE, Policy(int8_activations=True), Policy(bf16=True), Policy(merge=False), EVERYTHING],
    ids=["frozen", "all", "int8", "bf16", "beside", "everything"],
)
def test_the_base_comes_back_as_it_was(
    policy: Policy, raises: bool, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(family.base)
    task = task_of(family, bases.row_of(family.base, [0, 2]), policy, steps=2)
    if raises:
        outputs = type(family.kind).outputs

        def broken(self: Task, base: BaseModel, batch: Batch) -> Outputs:
            found = outputs(self, base, batch)
            return replace(found, loss_sums=found.loss_sums * torch.nan)

        monkeypatch.setattr(type(family.kind), "outputs", broken)
        with pytest.raises(TrainingError):
            train_client(task, family.base, family.kind, family.rows)
    else:
        moved = train_client(task, family.base, family.kind, family.rows).adapter.tensors()
        start = task.adapter.tensors()
        assert all(value.isfinite().all() and not torch.equal(value, start[n]) for n, value in moved.items())
    assert state_of(family.base) == before


def test_a_block_that_raises_leaves_nothing_behind(family: Family) -> None:
    before = state_of(family.base)
    block = family.base.net.get_submodule(family.base.spec.layers[1])

    def fail(*_: Any) -> None:
        raise RuntimeError("the block broke")

    hook = block.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="the block broke"):
        train_client(task_of(family, [0, 2], EVERYTHING), family.base, family.kind, family.rows)
    hook.remove()
    assert state_of(family.base) == before


def test_every_policy_together_trains_like_none(family: Family) -> None:
    """Close to the plain client in loss and in the direction of the step."""
    plain, spared = (
        train_client(task_of(family, [0, 2], policy, steps=6, lr=1e-2), family.base, family.kind, family.rows)
        for policy in (Policy(), EVERYTHING)
    )
    assert spared.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=0.05)
    start = task_of(family, [0, 2]).adapter.tensors()
    moves = [
        flat([value - start[name] for name, value in update.adapter.tensors().items() if name.startswith("head")])
        for update in (plain, spared)
        if update.adapter.head
    ]
    assert not moves or torch.cosine_similarity(*moves, dim=0) > 0.8
