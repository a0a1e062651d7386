"""A base model is lent out and comes back untouched; frozen means folded, without gradient, without memory."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import bases
import numpy as np
import pytest
import tiny_models
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2Model

from hellora.client.train import train_client
from hellora.core.types import Adapter, Mask
from hellora.model.load import adapter_spec
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.model.stand_ins import PerExampleError
from hellora.tasks.sequence_classification import SequenceClassification

OWN_HEAD = SequenceClassification(head_type="own")
LORA_IN = {"nothing": set(), "layers": {0, 2}, "components": {1, 2, 3}, "everything": {0, 1, 2, 3}}
IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 12, 13, 3], [2, 20, 5, 21, 3]])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """Four layers, mean pooling, no dropout."""
    return bases.load(tiny_models.save_bert(tmp_path_factory.mktemp("bert"), **bases.NO_DROPOUT))


@pytest.fixture(scope="module")
def gpt2() -> BaseModel:
    torch.manual_seed(0)
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(vocab_size=30, n_positions=16, n_embd=16, n_layer=3, n_head=2, n_inner=24, **no_dropout)
    net = GPT2Model(config).eval().requires_grad_(False)
    return BaseModel(net, adapter_spec(net, ModelSettings(rank=3, alpha=6.0)), None)


def hidden(net: Any, ids: Tensor = IDS) -> Tensor:
    state: Tensor = net(input_ids=ids).last_hidden_state
    return state


def batch_of(base: BaseModel, count: int, kind: SequenceClassification = bases.MEAN_POOLING) -> dict[str, Tensor]:
    return kind.collate(base, kind.encode(base, bases.texts(count)).examples)


# -------------------------------------------------------------------------------------------------------- what it says


@pytest.mark.parametrize("model", ["bert", "gpt2"])
@pytest.mark.parametrize("trained", ["nothing", "layers", "components", "everything"])
def test_folded_and_trained_parts_together_are_the_dense_update(
    model: str, trained: str, request: pytest.FixtureRequest
) -> None:
    base: BaseModel = request.getfixturevalue(model)
    adapter = bases.acting_adapter(base)
    rows: dict[str, Mask | None] = {
        "nothing": None,
        "layers": bases.row_of(base, [0, 2]),
        "components": bases.mixed_row(base),
        "everything": bases.row_of(base, range(base.spec.num_layers)),
    }
    with torch.no_grad():
        untouched = hidden(base.net)
        expected = hidden(bases.with_dense_weights(base, adapter))
        with base.adapted(adapter, rows[trained]) as adapted:
            got = hidden(base.net)
    assert {base.spec.layer_of[name] for name in adapted.lora} == LORA_IN[trained] & set(range(base.spec.num_layers))
    assert (expected - untouched).abs().max() > 0.05, "the adapter must do something"
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_a_module_without_a_pair_is_left_alone(bert: BaseModel) -> None:
    adapter = bases.acting_adapter(bert)
    some = Adapter(dict(list(adapter.pairs.items())[:3]), adapter.head)
    expected = hidden(bases.with_dense_weights(bert, some))
    with bert.adapted(some):
        torch.testing.assert_close(hidden(bert.net), expected, atol=1e-5, rtol=1e-5)


def test_read_returns_the_trained_components_and_they_put_together_again(bert: BaseModel) -> None:
    adapter, row = bases.acting_adapter(bert), bases.mixed_row(bert)
    with bert.adapted(adapter, row, train_head=True) as adapted:
        read = adapted.read()
        with torch.no_grad():
            for parameter in adapted.parameters:
                parameter.add_(1)  # the values that were read are their own
    assert list(read.pairs) == [m.name for m in bert.spec.modules if row[m.layer].any()]
    for module in bert.spec.modules:
        rows = torch.tensor(row[module.layer])
        if rows.any():
            assert torch.equal(read.pairs[module.name].A, adapter.pairs[module.name].A[rows])
            assert torch.equal(read.pairs[module.name].B, adapter.pairs[module.name].B[:, rows])
            assert read.pairs[module.name].scale == adapter.pairs[module.name].scale
    assert all(torch.equal(read.head[name], value) for name, value in adapter.head.items())


# ----------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("train_head", [True, False])
@pytest.mark.parametrize("kind", [bases.MEAN_POOLING, OWN_HEAD], ids=["mean_pooling", "own"])
def test_only_what_trains_has_a_gradient(
    kind: SequenceClassification, train_head: bool, tiny_bert_with_head: Path
) -> None:
    base = bases.load(tiny_bert_with_head, kind)
    row = bases.mixed_row(base)
    with base.adapted(bases.acting_adapter(base), row, train_head) as adapted:
        roots = [base.net] if base.head is None else [base.net, base.head]
        everything = {id(p): (name, p) for root in roots for name, p in root.named_parameters()}
        expected = [p for m in base.spec.modules if row[m.layer].any() for p in vars_of(adapted.lora[m.name])]
        expected += [adapted.head[name] for name in base.head_names] if train_head else []
        assert [id(p) for p in adapted.parameters] == [id(p) for p in expected], "what the optimizer gets"
        kind.outputs(base, batch_of(base, 6, kind)).loss_sums.sum().backward()
        trained = {id(p) for p in expected}
        for key, (name, parameter) in everything.items():
            assert parameter.requires_grad == (key in trained), name
            assert (parameter.grad is not None) == (key in trained), name
            if key in trained:
                assert parameter.grad is not None
                assert parameter.grad.abs().max() > 0, name
    for root in roots:
        assert all(p.grad is None and not p.requires_grad for p in root.parameters())


def vars_of(lora: nn.Module) -> list[Any]:
    return [lora.A, lora.B]


def test_gradients_of_components_are_those_of_the_whole_pair(bert: BaseModel) -> None:
    adapter, row = bases.acting_adapter(bert), bases.mixed_row(bert)

    def gradients(trained: Mask) -> dict[str, tuple[Tensor, Tensor]]:
        with bert.adapted(adapter, trained) as adapted:
            bases.MEAN_POOLING.outputs(bert, batch_of(bert, 6)).loss_sums.sum().backward()
            return {name: (m.A.grad, m.B.grad) for name, m in adapted.lora.items() if m.A.grad is not None}  # type: ignore[misc]

    whole = gradients(np.ones_like(row))
    part = gradients(row)
    assert part
    for name, (grad_a, grad_b) in part.items():
        rows = torch.tensor(row[bert.spec.layer_of[name]])
        torch.testing.assert_close(grad_a, whole[name][0][rows], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(grad_b, whole[name][1][:, rows], atol=1e-6, rtol=1e-4)


def test_copies_give_each_example_its_own_gradients(bert: BaseModel) -> None:
    adapter, everything = bases.acting_adapter(bert), bases.row_of(bert, range(4))
    examples = bases.MEAN_POOLING.encode(bert, bases.texts(5)).examples
    assert len({len(example["input_ids"]) for example in examples}) > 1, "padding is part of the question"
    with bert.adapted(adapter, everything, copies=5) as together:
        batch = bases.MEAN_POOLING.collate(bert, examples)
        bases.MEAN_POOLING.outputs(bert, batch).loss_sums.sum().backward()
    for i, example in enumerate(examples):
        with bert.adapted(adapter, everything) as alone:
            one = bases.MEAN_POOLING.collate(bert, [example])
            bases.MEAN_POOLING.outputs(bert, one).loss_sums.sum().backward()
        for name, module in alone.lora.items():
            copies = together.lora[name]
            assert copies.A.grad is not None
            assert copies.B.grad is not None
            torch.testing.assert_close(copies.A.grad[i], module.A.grad, atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(copies.B.grad[i], module.B.grad, atol=1e-6, rtol=1e-4)


def test_copies_refuse_a_module_that_does_not_see_one_example_per_row(bert: BaseModel) -> None:
    with bert.adapted(bases.acting_adapter(bert), bases.row_of(bert, range(4)), copies=2) as adapted:
        module = next(iter(adapted.lora.values()))
        module(torch.zeros(2, 5, 32))
        for shape in ((2, 32), (3, 5, 32), (10, 32), (2, 2, 5, 32)):
            with pytest.raises(PerExampleError):
                module(torch.zeros(shape))


# ---------------------------------------------------------------------------------------------------- back as it was


def snapshot(base: BaseModel) -> list[tuple[str, int, Tensor]]:
    roots = [base.net] if base.head is None else [base.net, base.head]
    return [(name, id(p), p.detach().clone()) for root in roots for name, p in root.named_parameters()]


@pytest.mark.parametrize("kind", [bases.MEAN_POOLING, OWN_HEAD], ids=["mean_pooling", "own"])
@pytest.mark.parametrize("how", ["trained", "copies", "evaluated", "raised", "bad adapter"])
def test_the_base_comes_back_as_the_very_same_objects(
    kind: SequenceClassification, how: str, tiny_bert_with_head: Path
) -> None:
    base = bases.load(tiny_bert_with_head, kind)
    parameters = snapshot(base)
    tree = [(name, id(module)) for name, module in base.net.named_modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in base.net.modules()]
    keys = list(base.net.state_dict())
    adapter, row = bases.acting_adapter(base), bases.mixed_row(base)

    def use() -> None:
        if how == "evaluated":
            with base.adapted(adapter):
                kind.outputs(base, batch_of(base, 4, kind))
            return
        if how == "bad adapter":
            with base.adapted(replace(adapter, head={}), row, train_head=True):
                pass
        with base.adapted(adapter, row, train_head=True, copies=4 if how == "copies" else None) as adapted:
            kind.outputs(base, batch_of(base, 4, kind)).loss_sums.sum().backward()
            torch.optim.SGD(adapted.parameters, lr=0.5).step()
            if how == "raised":
                raise RuntimeError("the client broke")

    if how in ("raised", "bad adapter"):
        with pytest.raises((RuntimeError, KeyError), match=r"the client broke|weight|bias"):
            use()
    else:
        use()
    for (name, identity, value), (name_after, identity_after, after) in zip(parameters, snapshot(base), strict=True):
        assert (name, identity) == (name_after, identity_after)
        assert torch.equal(value, after), name
    assert [(name, id(module)) for name, module in base.net.named_modules()] == tree
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in base.net.modules()] == hooks
    assert list(base.net.state_dict()) == keys
    assert not any(module.training for module in base.net.modules())


def test_blocks_that_train_are_in_train_mode_and_no_other(tiny_bert_with_head: Path) -> None:
    base = bases.load(tiny_bert_with_head, OWN_HEAD, dropout=0.5)
    for train_head in (True, False):
        with base.adapted(bases.acting_adapter(base), bases.row_of(base, [1, 3]), train_head):
            for name, module in base.net.named_modules():
                in_block = name.startswith(("bert.encoder.layer.1", "bert.encoder.layer.3"))
                in_head = name.startswith("classifier") and train_head
                assert module.training == (in_block or in_head), name
    with base.adapted(bases.acting_adapter(base)):
        assert not any(module.training for module in base.net.modules())


def test_lora_dropout_acts_on_trained_pairs_only(bert: BaseModel) -> None:
    dropping = BaseModel(bert.net, bert.spec, bert.processor, dropout=0.5, head=bert.head)
    adapter = bases.acting_adapter(bert)

    def twice(row: Mask | None) -> bool:
        with torch.no_grad(), dropping.adapted(adapter, row):
            return torch.equal(hidden(bert.net), hidden(bert.net))

    assert twice(None)
    assert not twice(bases.row_of(bert, [2]))


# --------------------------------------------------------------------------------------- what stays in memory (1.13)


def kept_bytes(base: BaseModel, row: Mask) -> dict[int, int]:
    """Bytes that autograd keeps of a forward pass, by the block that ran, -1 outside of the blocks; parameters and
    their folded copies excluded."""
    kept: dict[int, int] = {}
    inside: list[int] = []
    seen: set[int] = set()

    def watch(block: nn.Module, index: int) -> list[Any]:
        def leave(*_: Any) -> None:
            inside.pop()

        return [block.register_forward_pre_hook(lambda *_: inside.append(index)), block.register_forward_hook(leave)]

    with base.adapted(bases.acting_adapter(base), row):
        weights = {p.untyped_storage().data_ptr() for p in base.net.parameters()}
        hooks = [h for i, name in enumerate(base.spec.layers) for h in watch(base.net.get_submodule(name), i)]

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights | seen:
                block = inside[-1] if inside else -1
                kept[block] = kept.get(block, 0) + storage.nbytes()
                seen.add(storage.data_ptr())
            return tensor

        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                output = hidden(base.net)  # kept until the end, so that no storage is counted twice
        finally:
            for hook in hooks:
                hook.remove()
        assert output.requires_grad == row.any()
    return kept


def total(base: BaseModel, layers: Sequence[int]) -> int:
    return sum(kept_bytes(base, bases.row_of(base, layers)).values())


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_nothing_is_kept_below_the_shallowest_trained_layer(model: str, request: pytest.FixtureRequest) -> None:
    base: BaseModel = request.getfixturevalue(model)
    layers = base.spec.num_layers
    assert kept_bytes(base, bases.row_of(base, [])) == {}
    for shallowest in range(layers):
        kept = kept_bytes(base, bases.row_of(base, [shallowest]))
        assert {block for block in kept if block >= 0} == set(range(shallowest, layers)), kept


def test_kept_bytes_follow_the_measured_formula(bert: BaseModel) -> None:
    """M(S) = a · (L - min S) + b · |S| + c, with a > b > 0: depth costs most, each trained layer a little."""
    everything = total(bert, range(4))  # what freezing by lr = 0, as published, keeps for any row
    b = total(bert, [0, 1]) - total(bert, [0])
    a = total(bert, [2]) - total(bert, [3])
    c = total(bert, [3]) - a - b
    assert a > b > 0
    for layers in ([0], [0, 3], [1, 2], [0, 1, 2], [1, 3], [2, 3], [0, 1, 2, 3]):
        assert total(bert, layers) == a * (4 - min(layers)) + b * len(layers) + c, layers
    inverted_triangle, bottleneck = total(bert, [2, 3]), total(bert, [0, 3])
    assert inverted_triangle < 0.6 * everything
    assert inverted_triangle < bottleneck < everything


def test_fewer_components_free_little(bert: BaseModel) -> None:
    """The rank axis frees only the small (batch, tokens, rank) products, never a block's activations."""
    narrow = bases.row_of(bert, range(4))
    narrow[:, 1:] = False
    assert 0.9 * total(bert, range(4)) < sum(kept_bytes(bert, narrow).values()) < total(bert, range(4))


# --------------------------------------------------------------------------------------------- layers are not numbers


def test_freezing_layer_1_does_not_freeze_10_and_11(tmp_path: Path) -> None:
    """The published code matches `str(j) in name`, so freezing 0 or 1 freezes 10 and 11 as well."""
    base = bases.load(tiny_models.save_bert(tmp_path, num_hidden_layers=12, **bases.NO_DROPOUT), rank=2)
    adapter = bases.acting_adapter(base)
    row = bases.row_of(base, [0, 2, 10, 11])
    update = train_client(bases.task_of(base, row, adapter, lr=1e-2), base, bases.MEAN_POOLING, bases.texts(8))
    expected = [f"encoder.layer.{j}.attention.self.{leaf}" for j in (0, 2, 10, 11) for leaf in ("query", "value")]
    assert list(update.adapter.pairs) == expected
    for name, pair in update.adapter.pairs.items():
        assert not torch.equal(pair.A, adapter.pairs[name].A), name
        assert not torch.equal(pair.B, adapter.pairs[name].B), name


def test_shared_memory_and_device(tiny_bert: Path) -> None:
    base = bases.load(tiny_bert)
    before = snapshot(base)
    assert base.to("cpu") is base
    assert base.share_memory() is base
    assert base.head is not None
    assert all(p.is_shared() for p in [*base.net.parameters(), *base.head.parameters()])
    assert all(torch.equal(a, b) for (_, _, a), (_, _, b) in zip(before, snapshot(base), strict=True))
    assert (base.device, base.dtype) == (torch.device("cpu"), torch.float32)


def test_own_head_acts_as_dispatched(tiny_bert_with_head: Path) -> None:
    base = bases.load(tiny_bert_with_head, OWN_HEAD)
    adapter = bases.acting_adapter(base)
    batch = batch_of(base, 6, OWN_HEAD)
    moved = replace(adapter, head={name: value + 0.5 for name, value in adapter.head.items()})
    reference = bases.with_dense_weights(base, adapter)
    with torch.no_grad():
        for name, value in moved.head.items():
            reference.get_parameter(name).copy_(value)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        expected = cross_entropy(reference(**inputs).logits, batch["labels"], reduction="none")
        with base.adapted(moved):
            got = OWN_HEAD.outputs(base, batch).loss_sums
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
