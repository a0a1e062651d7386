"""Modules that train whole beside the pairs: where they stand, tied or not, how they train, and what peft reads."""

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import architectures
import bases
import numpy as np
import pytest
import tiny_models
import torch
import transformers
from datasets import Dataset
from factories import bits
from peft import PeftModel
from torch import Tensor
from torch.testing import assert_close

from hellora.client.train import train_client
from hellora.core.errors import InputError
from hellora.core.types import Adapter
from hellora.model.peft_files import load_peft, save_merged, save_peft
from hellora.model.policies import recomputed_layers
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.tasks import Task
from hellora.tasks.causal_lm import CausalLM
from hellora.tasks.image_classification import ImageClassification
from hellora.tasks.sequence_classification import SequenceClassification

KIND, OWN = CausalLM(), SequenceClassification(head_type="own")
IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 12, 13, 3]])
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
by_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module", params=["apart", "tied"])
def llama(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_llama(tmp_path_factory.mktemp("llama"), tie_word_embeddings=request.param == "tied")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_llama(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


def rows() -> Dataset:
    return bases.instructions(["we saw the boat", "a bird is near"] * 4, ["the wave", "old cloud"] * 4)


def load(folder: Path, *names: str, kind: Task = KIND, **settings: Any) -> BaseModel:
    return bases.load(folder, kind, modules_to_save=names, **settings)


def trained(base: BaseModel, data: Any = None, kind: Task = KIND, **settings: Any) -> Adapter:
    """After a few steps of every layer and of what trains whole."""
    task = bases.task_of(base, range(base.spec.num_layers), **{"steps": 3, "lr": 1e-2, **settings})
    return train_client(task, base, kind, rows() if data is None else data).adapter


# ------------------------------------------------------------------------------------------------------ what, and where


@pytest.mark.parametrize("names", [("embed_tokens",), ("lm_head",), ("lm_head", "embed_tokens")])
def test_what_is_tied_is_one_tensor(names: tuple[str, ...], tied: Path) -> None:
    """Whichever of its names is given; it is counted once, and moves in both places."""
    base = load(tied, *names)
    assert base.head_names == (EMBEDDING,)
    assert base.trains_below
    head = base.initial_head()
    assert {name: tuple(t.shape) for name, t in head.items()} == {EMBEDDING: (len(tiny_models.WORDS) + 5, 32)}
    with base.adapted(bases.acting_adapter(base), None, train_head=True) as adapted:
        (parameter,) = adapted.head.values()
        assert base.net.get_parameter(EMBEDDING) is base.net.get_parameter(OUTPUT) is parameter
        assert adapted.parameters == [parameter]
    assert base.net.get_parameter(EMBEDDING) is base.net.get_parameter(OUTPUT)
    assert not base.net.get_parameter(EMBEDDING).requires_grad


def test_what_stands_apart_is_two(tiny_llama: Path) -> None:
    assert load(tiny_llama, "embed_tokens").head_names == (EMBEDDING,)
    output = load(tiny_llama, "lm_head")
    assert output.head_names == (OUTPUT,)
    assert not output.trains_below
    both = load(tiny_llama, "lm_head", "embed_tokens", "norm")
    assert set(both.head_names) == {EMBEDDING, OUTPUT, "model.norm.weight"}
    assert load(tiny_llama).head_names == ()


def test_a_module_within_another_is_named_once(tiny_bert: Path) -> None:
    base = load(tiny_bert, "word_embeddings", "embeddings", kind=bases.MEAN_POOLING)
    assert base.head_modules == ("embeddings",)
    assert base.head_names[:2] == ("weight", "bias"), "hellora's own head is there, too"
    assert {name.partition(".")[0] for name in base.head_names[2:]} == {"embeddings"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embeddings", "no module is named 'embeddings': choose among model.embed_tokens, model.norm, lm_head"),
        ("q_proj", "'q_proj' is of blocks, which have layers: choose among"),
        ("model", "'model' is of blocks, which have layers: choose among"),
    ],
)
def test_other_names_are_refused_with_the_choices(name: str, message: str, tiny_llama: Path) -> None:
    with pytest.raises(InputError, match=f"model.modules_to_save: {message}"):
        load(tiny_llama, name)


@pytest.mark.parametrize("name", ["bert", "gpt2", "opt", "bloom", "falcon", "gpt_neox", "vit", "t5", "gemma"])
def test_embeddings_come_before_the_blocks(name: str) -> None:
    task, config = architectures.config_of(name)
    net = architectures.AUTO_CLASSES[task.kind()].from_config(config)
    found = next(each for each, module in net.named_modules() if module is net.get_input_embeddings())
    base = BaseModel(net, architectures.base_of(name)[1].spec, None, saved=(found,))
    assert base.trains_below


# ----------------------------------------------------------------------------------------------------------- training


def test_a_step_is_that_of_the_plain_model(llama: Path) -> None:
    """One step of SGD on embeddings and output, with autograd on a plain copy."""
    base = load(llama, "embed_tokens", "lm_head")
    task = bases.task_of(base, [1], steps=1, optimizer="sgd", lr=0.1, weight_decay=0.0, batch_size=8)
    got = train_client(task, base, KIND, rows()).adapter.head
    net = bases.with_dense_weights(base, task.adapter)
    names = [EMBEDDING] if net.get_parameter(EMBEDDING) is net.get_parameter(OUTPUT) else [EMBEDDING, OUTPUT]
    parameters = [net.get_parameter(name).requires_grad_(True) for name in names]
    batch = KIND.collate(base, KIND.encode(base, rows()).examples)
    plain = replace_net(base, net)
    outputs = KIND.outputs(plain, batch)
    gradients = torch.autograd.grad(outputs.loss_sums.sum() / outputs.weights.sum(), parameters)
    assert got.keys() == set(names)
    for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
        assert gradient.abs().max() > 1e-3
        assert_close(got[name], parameter.detach() - 0.1 * gradient, atol=1e-6, rtol=1e-5)


def replace_net(base: BaseModel, net: Any) -> BaseModel:
    return BaseModel(net, base.spec, base.processor)


def test_a_client_may_train_nothing_else(tied: Path) -> None:
    """As the allocator head_alone has it; the pairs act, and stay."""
    base = load(tied, "embed_tokens")
    update = train_client(bases.task_of(base, [], steps=2, lr=1e-2), base, KIND, rows())
    assert update.adapter.pairs == {}
    assert (update.adapter.head[EMBEDDING] - base.initial_head()[EMBEDDING]).abs().max() > 1e-3


@pytest.mark.parametrize("recompute", ["none", "frozen", "all"])
def test_running_blocks_again_changes_nothing(recompute: Any, tied: Path) -> None:
    """Blocks below the shallowest trained one, too, for the embeddings need their gradients."""
    base = load(tied, "embed_tokens")
    task = bases.task_of(base, [2], steps=2, lr=1e-2)
    plain = train_client(task, base, KIND, rows()).adapter
    again = train_client(replace(task, policy=replace(task.policy, recompute=recompute)), base, KIND, rows()).adapter
    for name, tensor in plain.tensors().items():
        assert_close(again.tensors()[name], tensor, atol=1e-6, rtol=1e-5)


def test_which_blocks_are_run_again() -> None:
    row = np.zeros((4, 2), dtype=bool)
    row[2] = True
    assert recomputed_layers("frozen", row) == [3]
    assert recomputed_layers("frozen", row, below=True) == [0, 1, 3]
    assert recomputed_layers("all", row, below=True) == [0, 1, 2, 3]
    assert recomputed_layers("frozen", ~row & row, below=True) == [0, 1, 2, 3]
    assert recomputed_layers("none", row, below=True) == []


def test_the_base_is_never_written_to(llama: Path) -> None:
    base = load(llama, "embed_tokens", "lm_head")
    before = bits(dict(base.net.state_dict()))
    head = base.initial_head()
    assert any((trained(base).head[name] - head[name]).abs().max() > 1e-3 for name in head)
    assert bits(dict(base.net.state_dict())) == before


def test_a_base_of_half_precision_trains_them_in_float32(tied: Path) -> None:
    base = load(tied, "embed_tokens", dtype="bfloat16")
    assert base.dtype == torch.bfloat16
    head = trained(base).head
    assert {tensor.dtype for tensor in head.values()} == {torch.float32}
    assert (head[EMBEDDING] - base.initial_head()[EMBEDDING]).abs().max() > 1e-3
    with base.adapted(bases.acting_adapter(base)):
        assert base.dtype == torch.bfloat16


def test_a_fingerprint_is_of_what_was_loaded(tied: Path) -> None:
    """Saved modules come from the checkpoint, as all of the base does; a head may be drawn."""
    assert load(tied, "embed_tokens").fingerprint() == load(tied).fingerprint()


# ------------------------------------------------------------------------------------------------------------- export


def check_files(base: BaseModel, kind: Task, adapter: Adapter, folder: Path, plain: Any, forward: Any) -> None:
    """Plain peft, its merged model, and merged weights say what the adapted base says; the files read back."""
    settings = ModelSettings(name="base", rank=base.spec.max_rank)
    save_peft(adapter, folder / "peft", base, settings, kind.kind())
    save_merged(adapter, folder / "merged", base, settings)
    with torch.no_grad(), base.adapted(adapter):
        expected: Tensor = forward(base.net)
    with torch.no_grad(), base.adapted(replace(adapter, head=base.initial_head())):
        assert (forward(base.net) - expected).abs().max() > 1e-3, "what trained whole must matter"
    loaded = PeftModel.from_pretrained(copy.deepcopy(plain), str(folder / "peft")).eval()
    merged = type(base.net).from_pretrained(str(folder / "merged"))
    with torch.no_grad():
        assert_close(forward(loaded), expected, atol=1e-5, rtol=1e-5)
        assert_close(forward(merged), expected, atol=1e-5, rtol=1e-5)
        theirs = loaded.merge_and_unload()
        assert_close(forward(theirs), expected, atol=1e-5, rtol=1e-5)
        theirs.save_pretrained(str(folder / "theirs"))
        assert_close(forward(type(base.net).from_pretrained(str(folder / "theirs"))), expected, atol=1e-5, rtol=1e-5)
    check_older_peft(folder / "peft", plain, forward, expected)
    read = load_peft(folder / "peft", base)
    assert bits(read.head) == bits({name: adapter.head[name] for name in base.head_names})


def check_older_peft(folder: Path, plain: Any, forward: Any, expected: Tensor) -> None:
    """One that ties nothing says the same, for what is tied is in the files under each of its names."""
    config = json.loads((folder / "adapter_config.json").read_text())
    if config.pop("ensure_weight_tying", False):
        (folder / "adapter_config.json").write_text(json.dumps(config))
        with warnings.catch_warnings(), torch.no_grad():
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
            assert_close(forward(PeftModel.from_pretrained(plain, str(folder)).eval()), expected, atol=1e-5, rtol=1e-5)


@by_peft
@pytest.mark.parametrize("names", [("embed_tokens",), ("lm_head",), ("embed_tokens", "lm_head")])
def test_peft_reads_what_was_trained_tied_or_not(names: tuple[str, ...], llama: Path, tmp_path: Path) -> None:
    base = load(llama, *names)
    plain = transformers.AutoModelForCausalLM.from_pretrained(str(llama))
    check_files(base, KIND, trained(base), tmp_path, plain, lambda net: net(input_ids=IDS).logits)


@by_peft
def test_peft_reads_the_embeddings_of_gpt2(tmp_path: Path) -> None:
    """Tied, and beside a table of positions."""
    config = transformers.GPT2Config(
        vocab_size=len(tiny_models.WORDS) + 5, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=2,
        eos_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(str(tmp_path / "base"))
    tiny_models.save_tokenizer(tmp_path / "base")
    base = load(tmp_path / "base", "wte", "wpe")
    plain = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "base"))
    check_files(base, KIND, trained(base), tmp_path, plain, lambda net: net(input_ids=IDS).logits)


@by_peft
@pytest.mark.parametrize("kind", [bases.MEAN_POOLING, OWN], ids=["mean_pooling", "own"])
def test_peft_reads_the_embeddings_of_a_classifier(kind: Task, tmp_path: Path) -> None:
    """Names of peft are endings of letters: "embeddings" ends "word_embeddings", too."""
    source = tiny_models.save_bert(tmp_path / "base", own_head=kind is OWN)
    base = load(source, "embeddings", kind=kind)
    adapter = trained(base, bases.texts(12), kind)
    cls = transformers.AutoModelForSequenceClassification if kind is OWN else transformers.AutoModel
    forward: Callable[[Any], Tensor] = lambda net: net(input_ids=IDS)[0]  # noqa: E731
    check_files(base, kind, adapter, tmp_path, cls.from_pretrained(str(source)), forward)


@by_peft
def test_peft_reads_the_embeddings_of_a_vit(tiny_vit: Path, tmp_path: Path) -> None:
    """A class token and positions, which are parameters of the module itself."""
    kind = ImageClassification()
    base = load(tiny_vit, "embeddings", kind=kind)
    adapter, rng = bases.acting_adapter(base), torch.Generator().manual_seed(0)
    head = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=rng) for name, tensor in adapter.head.items()}
    pixels = torch.randn(2, 3, 8, 8, generator=rng)
    plain = transformers.AutoModelForImageClassification.from_pretrained(str(tiny_vit))
    check_files(base, kind, replace(adapter, head=head), tmp_path, plain, lambda net: net(pixel_values=pixels).logits)
