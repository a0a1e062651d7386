"""What clients of unequal means train: a model without some blocks (FedRA), truncated pairs, one factor of them."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bases
import numpy as np
import pytest
import tiny_models
import torch
from factories import bits, dispatched
from torch import Tensor, nn
from transformers import (
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTModel,
)
from transformers.models.bert.modeling_bert import BertModel

import hellora.client.train
from hellora.client.train import train_client
from hellora.core.algebra import components, trained_components
from hellora.core.exchange import ClientTask, Factors, TrainSettings
from hellora.core.types import Adapter, LoraPair
from hellora.methods.dispatchers.bypass import Bypass as BypassDispatcher
from hellora.methods.dispatchers.truncate import Truncate
from hellora.model.load import adapter_spec
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.model.stand_ins import Bypass
from hellora.tasks.sequence_classification import SequenceClassification

IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 12, 13, 3], [2, 20, 5, 21, 3]])
PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
OWN_HEAD = SequenceClassification(head_type="own")


def gpt2() -> Any:
    return GPT2Model(GPT2Config(vocab_size=30, n_positions=16, n_embd=16, n_layer=3, n_head=2, n_inner=24))


def distilbert() -> Any:
    return DistilBertModel(DistilBertConfig(vocab_size=30, dim=16, n_layers=3, n_heads=2, hidden_dim=24))


def llama() -> Any:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=30, num_hidden_layers=3, intermediate_size=24, **sizes))


def vit() -> Any:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    return ViTModel(ViTConfig(num_hidden_layers=3, intermediate_size=24, **sizes))


def bert() -> Any:
    return BertModel(tiny_models.bert_config(num_hidden_layers=3))


MODELS: dict[str, tuple[Callable[[], Any], Callable[[Any], Tensor]]] = {
    "bert": (bert, lambda net: net(input_ids=IDS).last_hidden_state),
    "distilbert": (distilbert, lambda net: net(input_ids=IDS).last_hidden_state),
    "vit": (vit, lambda net: net(pixel_values=PIXELS).last_hidden_state),
    "llama": (llama, lambda net: net(input_ids=IDS, use_cache=False).logits),
    "gpt2": (gpt2, lambda net: net(input_ids=IDS, use_cache=False).last_hidden_state),
}


def base_of(model: str) -> BaseModel:
    torch.manual_seed(0)
    net = MODELS[model][0]().eval().requires_grad_(False)
    return BaseModel(net, adapter_spec(net, ModelSettings(rank=3, alpha=6.0)), None)


def without_blocks(base: BaseModel, adapter: Adapter, kept: list[int]) -> Any:
    """A copy of the network with the adapter in its weights, and with only these blocks in its list of blocks."""
    net = bases.with_dense_weights(base, adapter)
    owner, _, leaf = base.spec.layers[0].removesuffix(".0").rpartition(".")
    blocks = net.get_submodule(owner).get_submodule(leaf) if owner else net.get_submodule(leaf)
    assert len(blocks) == base.spec.num_layers
    setattr(net.get_submodule(owner), leaf, nn.ModuleList(blocks[i] for i in kept))
    return net


@pytest.mark.parametrize("kept", [[0], [1], [2], [0, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_it_is_the_model_without_those_blocks(model: str, kept: list[int]) -> None:
    base, says = base_of(model), MODELS[model][1]
    row = bases.row_of(base, kept)
    adapter = dispatched(BypassDispatcher(), bases.acting_adapter(base), row, base.spec)
    tree = [(name, id(module)) for name, module in base.net.named_modules()]
    weights = {name: (id(p), p.clone()) for name, p in base.net.named_parameters()}
    with torch.no_grad():
        before = says(base.net)
        expected = says(without_blocks(base, adapter, kept))
        with base.adapted(adapter, row, bypass=True):
            base.net.eval()  # the models of transformers have dropout by default
            first, second = says(base.net), says(base.net)
        torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(first, second)
        assert (first - before).abs().max() > 1e-3
        assert torch.equal(says(base.net), before), "the base is back"
    assert [(name, id(module)) for name, module in base.net.named_modules()] == tree
    for name, parameter in base.net.named_parameters():
        assert (id(parameter), True) == (weights[name][0], torch.equal(parameter, weights[name][1]))


def test_a_bypassed_block_runs_once_to_show_what_it_returns_and_never_again(tiny_bert: Path) -> None:
    base = bases.load(tiny_bert)
    calls = dict.fromkeys(base.spec.layers, 0)

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    hooks = [base.net.get_submodule(name).register_forward_pre_hook(count(name)) for name in base.spec.layers]
    task = bases.task_of(base, [0, 2], steps=5)
    task = replace(task, adapter=dispatched(BypassDispatcher(), task.adapter, task.trained, base.spec), bypass=True)
    train_client(task, base, bases.MEAN_POOLING, bases.texts(12))
    for hook in hooks:
        hook.remove()
    assert list(calls.values()) == [5, 1, 5, 1]


@pytest.mark.parametrize("kind", [bases.MEAN_POOLING, OWN_HEAD], ids=["mean_pooling", "own"])
def test_training_with_blocks_left_out(kind: SequenceClassification, tiny_bert_with_head: Path) -> None:
    """Only the pairs of its blocks come back, they and the head have moved, the loss fell; the base is untouched."""
    base = bases.load(tiny_bert_with_head, kind)
    before = bits(dict(base.net.named_parameters()))
    task = bases.task_of(base, [1, 2], steps=60, lr=0.01)
    sent = dispatched(BypassDispatcher(), task.adapter, task.trained, base.spec)
    task = replace(task, adapter=sent, bypass=True)
    update = train_client(task, base, kind, bases.texts(12))
    assert bits(dict(base.net.named_parameters())) == before
    assert list(update.adapter.pairs) == list(sent.pairs)
    assert {base.spec.layer_of[name] for name in update.adapter.pairs} == {1, 2}
    for name, value in update.adapter.tensors().items():
        assert not torch.equal(value, sent.tensors()[name]), name
    later = replace(task, adapter=update.adapter, train=replace(task.train, steps=3, lr=1e-9))
    assert train_client(later, base, kind, bases.texts(12)).metrics["loss"] < 0.8 * update.metrics["loss"]


class Pair(nn.Module):
    """A block that answers with a tuple of three, and says what kind of attention it wants."""

    attention_type = "sliding"

    def forward(self, hidden_states: Tensor, mask: Tensor, flag: bool = False) -> tuple[Tensor, bool, Tensor]:
        return hidden_states + mask, flag, hidden_states.softmax(-1)


def test_a_bypass_answers_as_its_block_does() -> None:
    bypass, x = Bypass(Pair()), torch.ones(2, requires_grad=True)
    y, flag, attention = bypass(x, torch.ones(2), flag=True)
    assert (y is x, flag, attention) == (True, True, None)
    assert bypass(x, torch.ones(2), flag=False)[1] is False
    assert Bypass(Pair())(hidden_states=x, mask=torch.ones(2))[0] is x
    assert bypass.attention_type == "sliding"
    assert list(bypass.children()) == []
    with pytest.raises(AttributeError):
        _ = bypass.nothing
    assert Bypass(nn.Identity())(x) is x


@pytest.mark.parametrize("block", [nn.ReLU(inplace=True), nn.Linear(2, 3)], ids=["place", "shape"])
def test_a_block_that_cannot_be_left_out_says_so(block: nn.Module) -> None:
    with pytest.raises(RuntimeError, match="hands on hidden states of another shape or place"):
        Bypass(block)(torch.ones(2))


# ----------------------------------------------------------------------------------------------- truncated and residual


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """Four layers, mean pooling, no dropout, rank 3."""
    return bases.load(tiny_models.save_bert(tmp_path_factory.mktemp("bert"), **bases.NO_DROPOUT))


def loss_of(net_owner: BaseModel) -> Tensor:
    batch = bases.MEAN_POOLING.collate(net_owner, bases.MEAN_POOLING.encode(net_owner, bases.texts(6)).examples)
    return bases.MEAN_POOLING.outputs(net_owner, batch).loss_sums.sum()


def test_a_truncated_adapter_has_smaller_tensors_and_means_what_it_says(base: BaseModel) -> None:
    row = bases.mixed_row(base)  # nothing, everything, and components that are not the first
    whole = bases.acting_adapter(base)
    sent = dispatched(Truncate(), whole, row, base.spec)
    with torch.no_grad():
        expected = bases.with_dense_weights(base, sent)(input_ids=IDS).last_hidden_state
        untruncated = bases.with_dense_weights(base, whole)(input_ids=IDS).last_hidden_state
    with base.adapted(sent, row, cut=True) as adapted:
        for name, module in adapted.lora.items():
            rank = int(row[base.spec.layer_of[name]].sum())
            assert (module.A.shape, module.B.shape) == ((rank, 32), (32, rank))
            assert module.A.untyped_storage().nbytes() == 4 * rank * 32
        with torch.no_grad():
            got = base.net(input_ids=IDS).last_hidden_state
        read = adapted.read()
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert (expected - untruncated).abs().max() > 0.01, "what was cut off must matter"
    for name, pair in read.pairs.items():
        assert bits({"A": pair.A, "B": pair.B}) == bits({"A": sent.pairs[name].A, "B": sent.pairs[name].B})


def test_a_pair_of_another_rank_is_refused(base: BaseModel) -> None:
    row = np.array([True, True, False])
    pair = next(iter(bases.acting_adapter(base).pairs.values()))
    cut = components(pair, torch.tensor(row))
    assert trained_components(pair, row, cut=False).tolist() == [True, True, False]
    assert trained_components(cut, row, cut=True).tolist() == [True, True]
    for one, is_cut, found in (
        (components(pair, torch.tensor([0])), True, "cut pair of rank 1"),
        (pair, True, "cut pair of rank 3"),
        (cut, False, "whole pair of rank 2"),
    ):
        with pytest.raises(ValueError, match=f"a {found} was sent to train 2 of 3 components"):
            trained_components(one, row, is_cut)


@pytest.mark.parametrize("layers", [None, [], [1, 3], [0, 1, 2, 3]], ids=str)
def test_a_residual_is_folded_in_beside_the_pairs(base: BaseModel, layers: list[int] | None) -> None:
    """Of another rank, and of scale 1, in layers that train and in layers that do not."""
    plain = bases.acting_adapter(base)
    rng = torch.Generator().manual_seed(5)
    some = [module.name for module in base.spec.modules][1:]
    residual = {
        name: LoraPair(0.2 * torch.randn(5, 32, generator=rng), 0.2 * torch.randn(32, 5, generator=rng), 1.0)
        for name in some
    }
    reference = BaseModel(bases.with_dense_weights(base, plain), base.spec, None)
    with torch.no_grad():
        without = reference.net(input_ids=IDS).last_hidden_state
        expected = bases.with_dense_weights(reference, Adapter(residual))(input_ids=IDS).last_hidden_state
        row = None if layers is None else bases.row_of(base, layers)
        with base.adapted(replace(plain, residual=residual), row) as adapted:
            got = base.net(input_ids=IDS).last_hidden_state
            read = adapted.read()
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert (got - without).abs().max() > 0.05
    assert not read.residual
    assert all(torch.equal(pair.A, plain.pairs[name].A) for name, pair in read.pairs.items())


# ----------------------------------------------------------------------------------------------------------- one factor


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize(("factors", "still"), [("A", "B"), ("B", "A")])
def test_the_other_factor_has_no_gradient_no_state_and_comes_back(
    base: BaseModel, factors: Factors, still: str, truncated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = bases.mixed_row(base)
    adapter = bases.acting_adapter(base)
    sent = dispatched(Truncate(), adapter, row, base.spec) if truncated else adapter
    with base.adapted(sent, row, factors=factors, cut=truncated) as adapted:
        loss_of(base).backward()
        for module in adapted.lora.values():
            assert getattr(module, factors).grad is not None
            assert getattr(module, still).grad is None
        assert {id(p) for p in adapted.parameters} == {id(getattr(m, factors)) for m in adapted.lora.values()}

    made: list[torch.optim.Optimizer] = []
    make = hellora.client.train.make_optimizer

    def kept(parameters: list[nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
        made.append(make(parameters, settings))
        return made[-1]

    monkeypatch.setattr(hellora.client.train, "make_optimizer", kept)
    settings = TrainSettings(batch_size=4, steps=2, weight_decay=0.5)
    task = ClientTask(0, 0, 7, sent, row, settings, head="frozen", factors=factors, cut=truncated)
    update = train_client(task, base, bases.MEAN_POOLING, bases.texts(8))
    assert len(made[0].state) == len(update.adapter.pairs), "one factor of each"
    for name, pair in update.adapter.pairs.items():
        index = torch.tensor(row[base.spec.layer_of[name]])
        before = components(adapter.pairs[name], index)
        assert torch.equal(getattr(pair, still), getattr(before, still))
        assert not torch.equal(getattr(pair, factors), getattr(before, factors))


def test_gradients_of_one_factor_are_those_of_both(base: BaseModel) -> None:
    adapter, row = bases.acting_adapter(base), bases.row_of(base, [1, 2])

    def gradients(factors: Factors) -> dict[str, Tensor]:
        with base.adapted(adapter, row, factors=factors) as adapted:
            loss_of(base).backward()
            grads = {f"{n}.{f}": getattr(m, f).grad for n, m in adapted.lora.items() for f in "AB"}
            return {name: copy.deepcopy(grad) for name, grad in grads.items() if grad is not None}

    both = gradients("both")
    for factor in ("A", "B"):
        alone = gradients(factor)  # type: ignore[arg-type]
        assert alone.keys() == {name for name in both if name.endswith(factor)}
        for name, grad in alone.items():
            torch.testing.assert_close(grad, both[name], atol=1e-6, rtol=1e-4)
