"""A quantised base: what is quantised, that nothing is ever merged into it, that it trains and evaluates."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import bases
import numpy as np
import pytest
import tiny_models
import torch
from factories import bits, orders_of
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model

from hellora.backends.local import LocalBackend
from hellora.client.evaluation import evaluate
from hellora.client.train import train_client
from hellora.client.work import ClientWork
from hellora.core.errors import InputError
from hellora.core.exchange import ClientUpdate
from hellora.core.types import Adapter, ClientProfile, LoraPair
from hellora.model.load import adapter_spec
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings, Quantization
from hellora.model.stand_ins import Beside
from hellora.tasks.causal_lm import CausalLM
from hellora.tasks.sequence_classification import SequenceClassification

OWN_HEAD = SequenceClassification(head_type="own")
BOTH: tuple[Quantization, ...] = ("8bit", "4bit")


@pytest.fixture(scope="module", params=BOTH)
def bert(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """Four layers, 64 wide, with a classification head of its own."""
    folder = tiny_models.save_bert(tmp_path_factory.mktemp("bert"), own_head=True, hidden_size=64, **bases.NO_DROPOUT)
    return bases.load(folder, OWN_HEAD, quantization=request.param)


def residual_of(base: BaseModel) -> dict[str, LoraPair]:
    rng = torch.Generator().manual_seed(1)
    return {
        m.name: LoraPair(torch.randn(2, m.d_in, generator=rng), 0.1 * torch.randn(m.d_out, 2, generator=rng), 1.0)
        for m in base.spec.modules
    }


def weights_of(base: BaseModel) -> Any:
    return bits(dict(base.net.named_parameters()))


# ------------------------------------------------------------------------------------------------- without the package


@pytest.mark.parametrize("absent", ["bitsandbytes", "accelerate"])
def test_a_missing_package_is_one_line(absent: str, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    packages = {"bitsandbytes": there("torch"), "accelerate": there("torch"), absent: None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: packages[name] if name in packages else there(name))
    message = rf"^model\.quantization = '4bit' needs {absent}: pip install 'hellora\[quantized\]'$"
    with pytest.raises(InputError, match=message):
        bases.load(tiny_bert, quantization="4bit")


def test_a_plan_needs_no_package(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    settings = ModelSettings(name=str(tiny_bert), quantization="8bit")
    assert OWN_HEAD.load(settings, bases.LABELS, 0, weights=False).spec.num_layers == 4


class PackedLinear(nn.Linear):
    """A linear module as bitsandbytes makes them: bytes, in a shape that says nothing."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features)
        self.scale, self.bias = float(linear.weight.abs().max()) / 127, linear.bias
        packed = (linear.weight / self.scale).round().to(torch.int8).reshape(-1, 1)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.view(self.out_features, self.in_features) * self.scale
        return nn.functional.linear(x, weight, self.bias)


def test_nothing_is_folded_into_packed_weights(tiny_bert: Path) -> None:
    """The pairs act in full precision beside the packed weight, whatever the policy says."""
    plain = bases.load(tiny_bert)
    net = bases.load(tiny_bert).net
    for module in plain.spec.modules:
        owner, _, leaf = module.name.rpartition(".")
        setattr(net.get_submodule(owner), leaf, PackedLinear(net.get_submodule(module.name)))
    spec = adapter_spec(net, ModelSettings(rank=3, alpha=6.0))
    assert spec == plain.spec, "shapes are not read from the packed weight"
    base = BaseModel(net, spec, plain.processor, head=plain.head)
    assert_nothing_is_folded(base)


def assert_nothing_is_folded(base: BaseModel) -> None:
    before = weights_of(base)
    adapter = bases.acting_adapter(base)
    adapter = Adapter(adapter.pairs, adapter.head, residual_of(base))
    x = torch.randn(2, 5, base.spec.modules[0].d_in, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = {m.name: base.net.get_submodule(m.name)(x) for m in base.spec.modules}
        with base.adapted(adapter, bases.mixed_row(base)):
            base.net.eval()  # in train mode bitsandbytes computes 8-bit modules in another way
            for module in base.spec.modules:
                got = base.net.get_submodule(module.name)(x)
                added = sum(
                    p.scale * x @ p.A.T @ p.B.T for p in (adapter.pairs[module.name], residual_of(base)[module.name])
                )
                torch.testing.assert_close(got - alone[module.name], added, atol=1e-4, rtol=1e-4)
    assert weights_of(base) == before
    assert not any(isinstance(module, Beside) for module in base.net.modules())


# ---------------------------------------------------------------------------------------------------- with the package


def test_the_blocks_are_quantised_and_the_head_is_not(bert: BaseModel) -> None:
    for name, module in bert.net.named_modules():
        if isinstance(module, nn.Linear):
            assert module.get_parameter("weight").is_floating_point() == (not name.startswith("bert.encoder.layer."))
    assert {(m.d_in, m.d_out) for m in bert.spec.modules} == {(64, 64)}
    assert bert.head_modules == ("classifier",)
    assert bert.initial_head()["classifier.weight"].shape == (3, 64)
    assert bert.dtype == torch.float32


def test_nothing_is_folded_into_real_quantised_weights(bert: BaseModel) -> None:
    assert_nothing_is_folded(bert)


def test_it_says_nearly_what_the_whole_base_says(bert: BaseModel) -> None:
    whole = bases.load(Path(bert.net.config._name_or_path), OWN_HEAD)
    batch = OWN_HEAD.collate(whole, OWN_HEAD.encode(whole, bases.texts(8)).examples)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        expected = whole.net.bert(**inputs).last_hidden_state
        got = bert.net.bert(**inputs).last_hidden_state
    assert 1e-4 < float((got - expected).norm() / expected.norm()) < 0.2


def test_it_trains_after_it_was_evaluated_and_learns(bert: BaseModel) -> None:
    """An evaluation does not change what a training does, to the bit; the loss falls; the base is untouched."""
    before = weights_of(bert)
    rows = bases.texts(24)
    adapter = bases.acting_adapter(bert)
    task = bases.task_of(bert, [1, 3], adapter, steps=60, lr=1e-2)
    first = train_client(task, bert, OWN_HEAD, rows)
    untrained = evaluate(adapter, bert, OWN_HEAD, rows, batch_size=8).metrics["loss"]
    again = train_client(task, bert, OWN_HEAD, rows)
    assert bits(first.adapter.tensors()) == bits(again.adapter.tensors())
    assert {bert.spec.layer_of[name] for name in first.adapter.pairs} == {1, 3}
    learnt = Adapter({**adapter.pairs, **first.adapter.pairs}, first.adapter.head)
    assert evaluate(learnt, bert, OWN_HEAD, rows, batch_size=8).metrics["loss"] < 0.8 * untrained
    assert weights_of(bert) == before


@pytest.mark.slow
def test_processes_train_it_as_one_process_does(bert: BaseModel) -> None:
    rows = bases.texts(16)
    parts = [np.arange(8), np.arange(8, 16)]
    fleet = [ClientProfile(0, 8), ClientProfile(1, 8)]
    orders = orders_of([bases.task_of(bert, [2, 3], steps=2)])
    answers = []
    for workers in (1, 2):
        with LocalBackend(ClientWork(bert, OWN_HEAD, rows, parts), fleet, workers=workers) as backend:
            (answer,) = backend.train(orders)
            assert isinstance(answer, ClientUpdate), answer
            answers.append(bits(answer.adapter.tensors()))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("quantization", BOTH)
def test_a_language_model_keeps_its_last_layer_whole(quantization: Quantization, tmp_path: Path) -> None:
    folder = tiny_models.save_llama(tmp_path)
    base = bases.load(folder, CausalLM(), quantization=quantization)
    assert base.net.lm_head.weight.dtype == torch.float32
    assert not base.net.model.layers[0].mlp.up_proj.weight.is_floating_point()
    assert [(m.d_in, m.d_out) for m in base.spec.modules[:4]] == [(32, 32)] * 4


def test_gpt2s_transposed_weights(tmp_path: Path) -> None:
    GPT2Model(GPT2Config(vocab_size=64, n_positions=32, n_embd=64, n_layer=2, n_head=2)).save_pretrained(tmp_path)
    tiny_models.save_tokenizer(tmp_path)
    whole, base = bases.load(tmp_path), bases.load(tmp_path, quantization="8bit")
    assert base.spec == whole.spec
    assert base.spec.modules[0].d_out == 3 * 64
    loss, expected = (
        evaluate(bases.acting_adapter(b), b, bases.MEAN_POOLING, bases.texts(4), 4).metrics["loss"]
        for b in (base, whole)
    )
    assert math.isclose(loss, expected, rel_tol=0.1)
