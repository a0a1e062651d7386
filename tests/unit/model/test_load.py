"""Finding, loading and laying out a model; writing an adapter that plain peft reads."""

import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import architectures
import bases
import pytest
import safetensors.torch
import tiny_models
import torch
import transformers
from datasets import Dataset
from factories import bits
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.testing import assert_close

import hellora.model.location
from hellora.client.train import train_client
from hellora.core.algebra import components, delta_weight
from hellora.core.errors import InputError
from hellora.core.types import Adapter, LoraPair
from hellora.model.load import AUTO_CLASSES, adapter_spec, load_network, load_tokenizer
from hellora.model.location import resolve_name
from hellora.model.peft_files import load_peft, save_peft
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.tasks import Task
from hellora.tasks.causal_lm import CausalLM
from hellora.tasks.image_classification import ImageClassification
from hellora.tasks.sequence_classification import SequenceClassification

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
OWN_HEAD = SequenceClassification(head_type="own")


def built(cls: Any, config: Any) -> nn.Module:
    with torch.device("meta"):
        net: nn.Module = cls(config)
    return net


# -------------------------------------------------------------------------------------------------------------- layout

BERT = (
    transformers.BertModel,
    transformers.BertConfig(**SMALL),
    [f"encoder.layer.{j}" for j in range(3)],
    {"query": (32, 32), "value": (32, 32)},
)
DISTILBERT = (
    transformers.DistilBertModel,
    transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=48),
    ["transformer.layer.0", "transformer.layer.1"],
    {"q_lin": (32, 32), "v_lin": (32, 32)},
)
LLAMA = (
    transformers.LlamaForCausalLM,
    transformers.LlamaConfig(**SMALL, num_key_value_heads=1, vocab_size=9),
    [f"model.layers.{j}" for j in range(3)],
    {"q_proj": (32, 32), "k_proj": (32, 16), "v_proj": (32, 16), "o_proj": (32, 32)},
)
GPT2 = (
    transformers.GPT2LMHeadModel,
    transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=9),
    ["transformer.h.0", "transformer.h.1"],
    {"c_attn": (32, 96)},
)
T5 = (
    transformers.T5ForConditionalGeneration,
    transformers.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=1, num_heads=2, vocab_size=9),
    ["encoder.block.0", "encoder.block.1", "decoder.block.0"],
    {"q": (32, 16), "v": (32, 16)},
)


@pytest.mark.parametrize("model", [BERT, DISTILBERT, LLAMA, GPT2, T5], ids=lambda model: model[0].__name__)
def test_layout(model: tuple[Any, Any, list[str], dict[str, tuple[int, int]]]) -> None:
    cls, config, layers, shapes = model
    net = built(cls, config)
    spec = adapter_spec(net, ModelSettings(rank=4, alpha=2.0), language_model=cls in (LLAMA[0], GPT2[0]))
    assert list(spec.layers) == layers
    assert (spec.max_rank, spec.scale) == (4, 0.5)
    for module in spec.modules:
        assert module.name.startswith(f"{layers[module.layer]}.")
        assert (module.d_in, module.d_out) == shapes[module.name.rpartition(".")[2]]
    expected = [n for n, _ in net.named_modules() if n.rpartition(".")[2] in shapes]
    assert [module.name for module in spec.modules] == expected
    per_layer = [sum(m.layer == j for m in spec.modules) for j in range(len(layers))]
    assert per_layer == [len(shapes) * (2 if name.startswith("decoder") else 1) for name in layers]


def test_layout_of_vit(tiny_vit: Path) -> None:
    base = bases.load(tiny_vit, ImageClassification())
    assert [name.rpartition(".")[2] for name in base.spec.layers] == ["0", "1", "2"]
    assert [(m.layer, m.d_in, m.d_out) for m in base.spec.modules] == [(j, 24, 24) for j in (0, 0, 1, 1, 2, 2)]
    leaves = {module.name.rpartition(".")[2] for module in base.spec.modules}
    assert leaves in ({"q_proj", "v_proj"}, {"query", "value"})  # of transformers 5, 4


def test_a_layer_of_swin_is_a_block_not_a_stage() -> None:
    config = transformers.SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4, num_labels=3
    )
    spec = adapter_spec(built(transformers.SwinForImageClassification, config), ModelSettings())
    assert list(spec.layers) == [f"swin.encoder.layers.{s}.blocks.{b}" for s, b in ((0, 0), (1, 0), (1, 1))]
    assert [module.layer for module in spec.modules] == [0, 0, 1, 1, 2, 2]


def test_an_encoder_that_classifies_gets_query_and_value_only() -> None:
    spec = adapter_spec(built(*LLAMA[:2]), ModelSettings())
    assert {module.name.rpartition(".")[2] for module in spec.modules} == {"q_proj", "v_proj"}


def test_layers_10_and_11_are_not_layer_1() -> None:
    net = built(transformers.BertModel, transformers.BertConfig(**{**SMALL, "num_hidden_layers": 12}))
    spec = adapter_spec(net, ModelSettings())
    assert [module.layer for module in spec.modules] == [j for j in range(12) for _ in range(2)]
    assert spec.layer_of["encoder.layer.11.attention.self.query"] == 11


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("attention.output.dense",), ["attention.output.dense"]),
        (("dense",), ["attention.output.dense", "intermediate.dense", "output.dense"]),
        (("query", "output.dense"), ["attention.self.query", "attention.output.dense", "output.dense"]),
    ],
)
def test_targets_name_endings(targets: tuple[str, ...], expected: list[str]) -> None:
    spec = adapter_spec(built(*BERT[:2]), ModelSettings(targets=targets))
    assert [m.name for m in spec.modules] == [f"encoder.layer.{j}.{name}" for j in range(3) for name in expected]


# By architecture, what peft takes besides: outside the blocks.
OUTSIDE = {
    **{name: set[str]() for name in ("llama", "qwen2", "mistral", "gpt2", "mixtral", "gpt_neox", "opt")},
    "bert": {"pooler.dense"},
    "vit": {"classifier"},
    "t5": {"classification_head.dense", "classification_head.out_proj"},
}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # GPT-2's Conv1D
@pytest.mark.filterwarnings("ignore:.*keys did not match any targeted module:RuntimeWarning")  # Mixtral's experts
@pytest.mark.parametrize("name", OUTSIDE)
def test_all_linear_is_what_peft_takes_of_the_blocks(name: str) -> None:
    task, config = architectures.config_of(name)
    net = AUTO_CLASSES[task.kind()].from_config(config)
    alone, in_list = (
        [m.name for m in adapter_spec(net, ModelSettings(targets=targets)).modules]
        for targets in ("all-linear", ("all-linear",))
    )
    theirs = set(get_peft_model(net, LoraConfig(target_modules="all-linear")).targeted_module_names)
    assert set(alone) == theirs - OUTSIDE[name]
    assert theirs >= OUTSIDE[name]
    assert in_list == alone == list(dict.fromkeys(alone))


def test_a_target_may_be_one_module() -> None:
    spec = adapter_spec(built(*BERT[:2]), ModelSettings(targets=("encoder.layer.2.attention.self.key",)))
    assert [(m.name, m.layer) for m in spec.modules] == [("encoder.layer.2.attention.self.key", 0)]
    assert spec.layers == ("encoder.layer.2",)


def test_unknown_targets_are_refused_with_the_choices() -> None:
    net = built(*BERT[:2])
    for target in ("uery", "q_proj"):  # an ending of a name is not an ending of its letters
        with pytest.raises(InputError, match=r"model\.targets.*" + target + r".*choose among dense, key, query, value"):
            adapter_spec(net, ModelSettings(targets=(target,)))


def test_a_model_of_unknown_names_asks_for_targets() -> None:
    net = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"mix": nn.Linear(4, 4)})])})
    with pytest.raises(InputError, match=r"model\.targets: give the modules to adapt; this model has mix"):
        adapter_spec(net, ModelSettings())


# ------------------------------------------------------------------------------------------------------------- finding


def test_a_model_without_linear_modules_in_blocks_is_refused() -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    net = built(transformers.ResNetForImageClassification, config)
    with pytest.raises(InputError, match="no linear module inside numbered blocks, where LoRA could sit"):
        adapter_spec(net, ModelSettings())


def test_minilm_is_found_in_the_wheel_and_its_weights_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(resolve_name("minilm"))
    assert (folder / "config.json").is_file()
    monkeypatch.setattr(hellora.model.location, "MINILM_SHA256", "0" * 64)
    with pytest.raises(InputError, match="sha256"):
        load_network(ModelSettings(), "features", (), seed=0)
    load_network(ModelSettings(), "features", (), seed=0, weights=False)  # reads no weights, so none are checked
    monkeypatch.setattr(hellora.model.location, "MINILM_WHEEL", "no_such_wheel")
    assert resolve_name("minilm") == "sentence-transformers/all-MiniLM-L6-v2"


def test_a_folder_must_be_a_model_folder(tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"model\.name: the folder .* has no config\.json"):
        resolve_name(str(tmp_path))
    for absent in (str(tmp_path / "absent"), "./absent", "a/b/c"):
        with pytest.raises(InputError, match=r"model\.name: there is no folder"):
            resolve_name(absent)
    assert resolve_name(str(tiny_bert)) == str(tiny_bert)
    monkeypatch.setenv("HOME", str(tiny_bert.parent))
    assert resolve_name(f"~/{tiny_bert.name}") == str(tiny_bert)
    assert resolve_name("google-bert/bert-base-uncased") == "google-bert/bert-base-uncased"


@pytest.mark.parametrize("damage", ["config", "weights", "no weights", "hub", "kind"])
def test_what_cannot_be_loaded_is_one_line(damage: str, tmp_path: Path) -> None:
    name = str(tiny_models.save_bert(tmp_path))
    if damage == "config":
        (tmp_path / "config.json").write_text("{")
    elif damage == "weights":
        (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:999])
    elif damage == "no weights":
        (tmp_path / "model.safetensors").unlink()
    elif damage == "hub":
        name = "nobody/nothing"
    with pytest.raises(InputError, match=r"model\.name: (cannot load|.* is not on this machine)") as caught:
        load_network(ModelSettings(name=name), "image_classification" if damage == "kind" else "features", "ab", 0)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- loading


def test_a_network_is_loaded_frozen_and_in_eval_mode(tiny_bert: Path) -> None:
    net, head = load_network(ModelSettings(name=str(tiny_bert)), "features", (), 0)
    assert head == ()
    assert not any(p.requires_grad for p in net.parameters())
    assert not any(module.training for module in net.modules())
    saved = load_file(tiny_bert / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in net.named_parameters())


def test_dtype_of_the_weights(tiny_bert: Path) -> None:
    net, _ = load_network(ModelSettings(name=str(tiny_bert), dtype="bfloat16"), "features", (), 0)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}


def own_head(folder: Path, labels: tuple[str, ...] = bases.LABELS, seed: int = 0, classes: int | None = None) -> Any:
    return load_network(ModelSettings(name=str(folder), classes=classes), "sequence_classification", labels, seed)


def test_own_head_of_a_checkpoint_that_has_one(tiny_bert_with_head: Path) -> None:
    net, head = own_head(tiny_bert_with_head)
    assert head == ("classifier",)
    assert torch.equal(net.classifier.weight, load_file(tiny_bert_with_head / "model.safetensors")["classifier.weight"])
    assert net.config.id2label == dict(enumerate(bases.LABELS))


def test_what_the_checkpoint_lacks_belongs_to_the_head(tmp_path: Path) -> None:
    tiny_models.save_tokenizer(tmp_path)
    transformers.BertModel(tiny_models.bert_config(), add_pooling_layer=False).save_pretrained(str(tmp_path))
    _, head = own_head(tmp_path)
    assert head == ("classifier", "bert.pooler")
    base = bases.load(tmp_path, OWN_HEAD)
    assert set(base.head_names) == {
        f"{module}.{parameter}" for module in ("classifier", "bert.pooler.dense") for parameter in ("weight", "bias")
    }


def test_head_of_distilbert(tmp_path: Path) -> None:
    config = transformers.DistilBertConfig(vocab_size=33, dim=32, n_layers=1, n_heads=2, hidden_dim=48)
    transformers.DistilBertModel(config).save_pretrained(str(tmp_path))
    assert own_head(tmp_path)[1] == ("pre_classifier", "classifier")


def test_head_of_a_model_whose_base_has_another_name(tmp_path: Path) -> None:
    """CLIP's classifier names "clip" as its base, and has its vision model as a child: that is no head."""
    config = transformers.CLIPConfig(vision_config={**SMALL, "image_size": 8, "patch_size": 4}, num_labels=3)
    transformers.CLIPForImageClassification(config).save_pretrained(str(tmp_path))
    _, head = load_network(ModelSettings(name=str(tmp_path)), "image_classification", bases.LABELS, 0)
    assert head == ("classifier",)


@pytest.mark.parametrize("labels", [("a", "b"), ("a", "b", "c", "d", "e")])
def test_another_number_of_classes_means_a_new_head_drawn_from_the_seed(
    labels: tuple[str, ...], tiny_bert_with_head: Path
) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    net, head = own_head(tiny_bert_with_head, labels, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is not ours to move"
    assert head == ("classifier",)
    assert net.classifier.weight.shape == (len(labels), 32)
    assert net.classifier.weight.std() > 0
    torch.rand(3)
    again = own_head(tiny_bert_with_head, labels, seed=1)[0]
    other = own_head(tiny_bert_with_head, labels, seed=2)[0]
    assert bits(again.state_dict()) == bits(net.state_dict())
    assert not torch.equal(other.classifier.weight, net.classifier.weight)


def test_the_classes_setting_makes_room(tiny_bert_with_head: Path) -> None:
    net, _ = own_head(tiny_bert_with_head, ("a", "b"), classes=4)
    assert net.config.id2label == {0: "a", 1: "b", 2: "class 2", 3: "class 3"}
    assert net.classifier.weight.shape == (4, 32)


@pytest.mark.parametrize(
    ("kind", "folder"),
    [
        (bases.MEAN_POOLING, "tiny_bert"),
        (OWN_HEAD, "tiny_bert_with_head"),
        (ImageClassification(), "tiny_vit"),
        (CausalLM(), "tiny_llama"),
    ],
    ids=["mean_pooling", "own", "vit", "llama"],
)
def test_without_weights_the_layout_is_the_same(kind: Task, folder: str, request: pytest.FixtureRequest) -> None:
    settings = ModelSettings(name=str(request.getfixturevalue(folder)), rank=3)
    bare = kind.load(settings, (), 0, weights=False)
    assert all(p.is_meta for p in bare.net.parameters())
    assert bare.spec == kind.load(settings, bases.LABELS, 0).spec


def test_a_folder_without_a_tokenizer_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_bert / name, tmp_path)
    with pytest.raises(InputError, match=r"has no tokenizer: save it there, too \(tokenizer.save_pretrained\)"):
        load_tokenizer(ModelSettings(name=str(tmp_path)))


def test_a_model_of_images_reads_no_texts(tiny_vit: Path) -> None:
    for kind in (SequenceClassification(), OWN_HEAD, CausalLM()):
        with pytest.raises(InputError, match=r"reads images: set task\.name = 'image_classification'|cannot load"):
            kind.load(ModelSettings(name=str(tiny_vit)), bases.LABELS, 0)
    with pytest.raises(InputError, match="reads images"):
        SequenceClassification().load(ModelSettings(name=str(tiny_vit)), bases.LABELS, 0, weights=False)


def test_a_tokenizer_always_has_a_padding_token(tmp_path: Path) -> None:
    words = Tokenizer(WordLevel({"<|end|>": 0, "a": 1, "b": 2}, unk_token="<|end|>"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|end|>").save_pretrained(str(tmp_path))
    transformers.GPT2Config().save_pretrained(str(tmp_path))
    assert load_tokenizer(ModelSettings(name=str(tmp_path))).pad_token == "<|end|>"


# ---------------------------------------------------------------------------------------------------- writing for PEFT


# peft asks transformers 5 for an attribute by its old name
by_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def trained(base: BaseModel, kind: Task, rows: Any) -> Adapter:
    """The adapter after a few real steps of every layer and the head."""
    adapter = bases.acting_adapter(base)
    task = bases.task_of(base, range(base.spec.num_layers), adapter, steps=3, lr=1e-2)
    update = train_client(task, base, kind, rows)
    assert not torch.equal(next(iter(update.adapter.pairs.values())).B, next(iter(adapter.pairs.values())).B)
    return update.adapter


def check_peft(
    base: BaseModel, kind: Task, rows: Any, folder: Path, name: str, plain: Any, forward: Any, **settings: Any
) -> None:
    """`forward` of plain peft on a fresh base says what our adapted model says."""
    adapter = trained(base, kind, rows)
    save_peft(adapter, folder, base, ModelSettings(name=name, **settings), kind.kind())
    with torch.no_grad(), base.adapted(adapter):
        expected: Tensor = forward(base.net)
    loaded = PeftModel.from_pretrained(plain, str(folder)).eval()
    with torch.no_grad():
        assert_close(forward(loaded), expected, atol=1e-5, rtol=1e-5)
        with base.adapted(bases.acting_adapter(base, seed=9)):
            assert (forward(base.net) - expected).abs().max() > 1e-3, "the adapter must matter"
    written = load_file(folder / "adapter_model.safetensors")
    assert len(written) == 2 * len(base.spec.modules) + (0 if base.head is not None else len(base.head_names))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == name
    assert config["modules_to_save"] == (list(base.head_modules) or None), "peft must know what is not LoRA"


IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 12, 13, 3]])


@by_peft
@pytest.mark.parametrize("alpha", [3.0, 7.0])
def test_peft_reads_a_mean_pooling_adapter(alpha: float, tiny_bert: Path, tmp_path: Path) -> None:
    base = bases.load(tiny_bert, rank=3, alpha=alpha)
    plain = transformers.AutoModel.from_pretrained(str(tiny_bert))
    forward = lambda net: net(input_ids=IDS).last_hidden_state  # noqa: E731
    check_peft(base, bases.MEAN_POOLING, bases.texts(12), tmp_path, str(tiny_bert), plain, forward, rank=3, alpha=alpha)
    assert set(load_file(tmp_path / "head.safetensors")) == {"weight", "bias"}


@by_peft
@pytest.mark.parametrize("pooler", ["in the checkpoint", "new"])
def test_peft_reads_an_own_head(pooler: str, tmp_path: Path) -> None:
    source = tmp_path / "base"
    if pooler == "new":
        tiny_models.save_bert(source)
        transformers.BertModel(tiny_models.bert_config(), add_pooling_layer=False).save_pretrained(str(source))
    else:
        tiny_models.save_bert(source, own_head=True)
    base = bases.load(source, OWN_HEAD)
    assert ("bert.pooler" in base.head_modules) == (pooler == "new")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(
        str(source), num_labels=3, ignore_mismatched_sizes=True
    )
    forward = lambda net: net(input_ids=IDS).logits  # noqa: E731
    check_peft(base, OWN_HEAD, bases.texts(12), tmp_path / "out", str(source), plain, forward, rank=3, alpha=6.0)
    assert not (tmp_path / "out" / "head.safetensors").exists()


@by_peft
def test_peft_reads_a_vit_adapter(tiny_vit: Path, tmp_path: Path) -> None:
    base = bases.load(tiny_vit, ImageClassification())
    colours = ["red", "green", "blue"]
    rows = Dataset.from_dict({"label": [0, 1, 2] * 3})
    examples = [{"image": Image.new("RGB", (8, 8), colours[label]), "label": label} for label in rows["label"]]
    plain = transformers.AutoModelForImageClassification.from_pretrained(str(tiny_vit))
    pixels = ImageClassification().collate(base, examples)["pixel_values"]
    forward = lambda net: net(pixel_values=pixels).logits  # noqa: E731
    check_peft(base, ImageClassification(), examples, tmp_path, str(tiny_vit), plain, forward, rank=3, alpha=6.0)


@by_peft
def test_peft_reads_a_llama_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    base = bases.load(tiny_llama, CausalLM())
    rows = Dataset.from_dict({"prompt": ["we saw the boat"] * 4, "response": ["near the old wave"] * 4})
    plain = transformers.AutoModelForCausalLM.from_pretrained(str(tiny_llama))
    forward = lambda net: net(input_ids=IDS).logits  # noqa: E731
    check_peft(base, CausalLM(), rows, tmp_path, str(tiny_llama), plain, forward, rank=3, alpha=6.0)


@by_peft
def test_peft_reads_rslora_and_so_does_its_own(tiny_llama: Path, tmp_path: Path) -> None:
    """The scale is written as alpha / r. With use_rslora and the alpha of the settings peft has the same one."""
    settings: dict[str, Any] = {"rank": 4, "alpha": 3.0, "rslora": True}
    base = bases.load(tiny_llama, CausalLM(), **settings)
    assert base.spec.scale == 1.5
    plain = transformers.AutoModelForCausalLM.from_pretrained(str(tiny_llama))
    rows = bases.instructions(["the boat"] * 8, ["a wave"] * 8)
    forward = lambda net: net(input_ids=IDS).logits  # noqa: E731
    check_peft(base, CausalLM(), rows, tmp_path, str(tiny_llama), plain, forward, **settings)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["lora_alpha"] / config["r"] == LoraConfig(r=4, lora_alpha=3).lora_alpha / 4**0.5


@by_peft
def test_peft_reads_a_gpt2_adapter(tmp_path: Path) -> None:
    """Its Conv1D stores weights the other way round."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    transformers.GPT2Model(config).save_pretrained(str(tmp_path / "base"))
    tiny_models.save_tokenizer(tmp_path / "base")
    base = bases.load(tmp_path / "base")
    plain = transformers.AutoModel.from_pretrained(str(tmp_path / "base"))
    forward = lambda net: net(input_ids=IDS).last_hidden_state  # noqa: E731
    name = str(tmp_path / "base")
    check_peft(base, bases.MEAN_POOLING, bases.texts(12), tmp_path / "out", name, plain, forward, rank=3, alpha=6.0)


def uneven(base: BaseModel, ranks: Sequence[int]) -> Adapter:
    """An adapter whose modules have these ranks, in turn."""
    adapter = bases.acting_adapter(base)
    pairs = {
        name: components(pair, torch.arange(rank))
        for (name, pair), rank in zip(adapter.pairs.items(), itertools.cycle(ranks), strict=False)
    }
    return replace(adapter, pairs=pairs)


def with_residual(base: BaseModel, ranks: Sequence[int]) -> Adapter:
    """Every second module has a residual of rank 2 and scale 1 that acts."""
    adapter = uneven(base, ranks)
    rng = torch.Generator().manual_seed(3)
    residual = {
        m.name: LoraPair(torch.randn(2, m.d_in, generator=rng), torch.randn(m.d_out, 2, generator=rng), 1.0)
        for m in base.spec.modules[::2]
    }
    return replace(adapter, residual=residual)


@by_peft
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    ("ranks", "residual", "written"),
    [
        ((2,), False, {2}),  # a prototype of a smaller rank
        ((3, 1, 3, 2), False, {3}),
        ((3,), True, {5}),
        ((2, 3, 1), True, {5}),
    ],
)
def test_peft_reads_mixed_ranks_and_a_residual(
    ranks: tuple[int, ...], residual: bool, written: set[int], rslora: bool, tiny_bert: Path, tmp_path: Path
) -> None:
    base = bases.load(tiny_bert, rank=3, alpha=7.0, rslora=rslora)
    assert base.spec.scale == pytest.approx(7 / (3**0.5 if rslora else 3))
    adapter = with_residual(base, ranks) if residual else uneven(base, ranks)
    save_peft(adapter, tmp_path, base, ModelSettings(name=str(tiny_bert), rank=3, alpha=7.0), "features")
    with torch.no_grad():
        with base.adapted(adapter):
            expected = base.net(input_ids=IDS).last_hidden_state
        with base.adapted(replace(adapter, residual={})):
            bare = base.net(input_ids=IDS).last_hidden_state
        loaded = PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(str(tiny_bert)), str(tmp_path))
        assert_close(loaded.eval()(input_ids=IDS).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    assert ((bare - expected).abs().max() > 1e-2) == residual, "the residual must matter"
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {len(tensor) for name, tensor in tensors.items() if "lora_A" in name} == written


def test_unequal_ranks_are_padded_by_components_of_zeros(tmp_path: Path) -> None:
    """Tools that know but alpha / r, or alpha / rank of the tensor, read the same scale as peft does."""
    base = bases.load(tiny_models.save_bert(tmp_path / "bert"), rank=3, alpha=6.0)
    adapter = with_residual(base, [3, 1, 2, 3])
    save_peft(adapter, tmp_path / "out", base, ModelSettings(name="x"), "features")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (5, 10.0, {}, {})
    for name, pair in adapter.pairs.items():
        A, B = (tensors[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")
        residual = adapter.residual.get(name)
        own = pair.rank + (residual.rank if residual else 0)
        assert len(A) == B.shape[1] == 5
        assert torch.equal(A[: pair.rank], pair.A)
        assert torch.equal(B[:, : pair.rank], pair.B)
        assert not A[own:].any()
        assert not B[:, own:].any()
        read = load_peft(tmp_path / "out", base).pairs[name]
        expected = delta_weight(pair) + (delta_weight(residual) if residual else 0)
        assert_close(delta_weight(read), expected, atol=1e-5, rtol=0)


def test_minilm_is_saved_under_its_hub_name(tiny_bert: Path, tmp_path: Path) -> None:
    base = bases.load(tiny_bert)
    save_peft(bases.acting_adapter(base), tmp_path, base, ModelSettings(name="minilm"), "features")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert (config["r"], config["lora_alpha"], config["inference_mode"]) == (3, 6.0, True)
    said = LoraConfig(
        base_model_name_or_path=config["base_model_name_or_path"],
        task_type="FEATURE_EXTRACTION",
        r=3,
        lora_alpha=6.0,
        target_modules=[module.name for module in base.spec.modules],
        inference_mode=True,
    )
    assert LoraConfig.from_pretrained(str(tmp_path)).to_dict() == said.to_dict(), "as if peft had written it"
    with safetensors.safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"rank": 0}, "rank"), ({"dropout": 1.0}, "dropout"), ({"alpha": 0.0}, "alpha"), ({"alpha": -1.0}, "alpha")],
)
def test_settings_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ModelSettings(), **change)


def test_the_scale_is_alpha_over_rank() -> None:
    assert ModelSettings(rank=4).scale == 1
    assert ModelSettings(rank=4, alpha=8.0).scale == 2


def test_the_scale_of_rslora_is_alpha_over_the_root_of_the_rank() -> None:
    assert ModelSettings(rank=4, rslora=True).scale == 2
    assert ModelSettings(rank=4, alpha=3.0, rslora=True).scale == 1.5
    assert ModelSettings(rank=9, alpha=6.0, rslora=True).scale == 2


def test_a_checkpoint_without_a_block_is_refused(tmp_path: Path, tiny_bert: Path) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(tiny_bert, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({n: w for n, w in weights.items() if "layer.3.output" not in n}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"has no weights for encoder.layer.3.output.* more: name a checkpoint"):
        load_network(ModelSettings(name=str(folder)), "features", (), 0)


def test_an_encoder_is_no_language_model(tiny_bert: Path) -> None:
    with pytest.raises(InputError, match="has no weights for cls"):
        load_network(ModelSettings(name=str(tiny_bert)), "causal_lm", (), 0)
