"""Load a model, and find the modules in it where LoRA sits. No other file imports transformers."""

import importlib.util
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from hellora.core.errors import InputError
from hellora.core.types import AdapterSpec, ModuleSpec
from hellora.model.location import check_minilm, resolve_name

Quantization = Literal["none", "8bit", "4bit"]
Kind = Literal["features", "sequence_classification", "image_classification", "causal_lm"]
AUTO_CLASSES: dict[Kind, Any] = {
    "features": transformers.AutoModel,
    "sequence_classification": transformers.AutoModelForSequenceClassification,
    "image_classification": transformers.AutoModelForImageClassification,
    "causal_lm": transformers.AutoModelForCausalLM,
}
# Attention projections by the names that model families give them; the first group found in the model is adapted.
ATTENTION_NAMES: tuple[tuple[str, ...], ...] = (
    ("query", "value"),  # BERT, RoBERTa, ViT of transformers 4
    ("q_proj", "v_proj"),  # ViT of transformers 5, Llama, Qwen, Mistral, OPT, CLIP
    ("q_lin", "v_lin"),  # DistilBERT
    ("q", "v"),  # T5
    ("query_proj", "value_proj"),  # DeBERTa
    ("query_key_value",),  # Falcon, BLOOM, GPT-NeoX
    ("qkv_proj",),  # Phi-3
    ("c_attn",),  # GPT-2
    ("Wqkv",),  # ModernBERT
)
LANGUAGE_MODEL_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj")

# The block of a module: its name up to its first number; or up to its second, where stages hold blocks (Swin).
NUMBERED = re.compile(r"^(.*?\.\d+(?:\.blocks\.\d+)?)\.")

# What bitsandbytes is asked for; 4bit as in QLoRA (arXiv 2305.14314).
QUANTIZATION: dict[Quantization, dict[str, Any]] = {
    "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}
QUANTIZED_BYTES: dict[Quantization, float] = {"8bit": 1.01, "4bit": 0.52}  # of a number, with its share of scales

transformers_logging.disable_progress_bar()
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of each layer's every call


@dataclass(frozen=True)
class ModelSettings:
    """The [model] table says which model is trained, and what shape its adapter has."""

    name: str = "minilm"  # hub id, local folder, or "minilm"
    rank: int = 8
    alpha: float | None = None  # scale = alpha / rank; None = rank, so that the scale is 1
    targets: tuple[str, ...] = ()  # module name endings; () = the attention projections usual for the model
    dropout: float = 0.0  # on the input of trained LoRA modules
    classes: int | None = None  # size of a classification head; None = the classes in the data
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the base weights; adapters are float32
    quantization: Quantization = "none"  # of the linear modules inside the blocks; needs the extra `quantized`
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ValueError("rank must be at least 1, and dropout in [0, 1)")
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"alpha must be greater than 0, not {self.alpha}")

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


@contextmanager
def loading(settings: ModelSettings) -> Iterator[dict[str, Any]]:
    """Lend the arguments common to every load, and turn whatever transformers raises into one line."""
    common = {
        "pretrained_model_name_or_path": resolve_name(settings.name),
        "trust_remote_code": settings.trust_remote_code,
    }
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield common
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        why = " ".join(str(error).split())[:300]
        raise InputError(f"model.name: cannot load {settings.name!r}: {why}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def load_network(
    settings: ModelSettings, kind: Kind, labels: Sequence[str], seed: int, weights: bool = True
) -> tuple[Any, tuple[str, ...]]:
    """Load the Hugging Face model on the CPU, in eval mode, without gradients; name the modules of its own head.

    The head is what a classification model has outside its base model (classifier, pre_classifier, score), and
    whatever the checkpoint had no weights for. New weights are drawn from `seed`. `weights=False` builds the same
    module tree on the meta device from the config alone.
    """
    sizes: dict[str, Any] = {}
    if kind in ("sequence_classification", "image_classification"):
        count = settings.classes or len(labels)
        names = {i: labels[i] if i < len(labels) else f"class {i}" for i in range(count)}
        sizes = {"id2label": names, "label2id": {v: k for k, v in names.items()}} if names else {}
    quantized = quantization(settings, kind, labels) if weights else {}
    with loading(settings) as common:
        if not weights:
            config = transformers.AutoConfig.from_pretrained(**common, **sizes)
            with torch.device("meta"):
                net = AUTO_CLASSES[kind].from_config(config, trust_remote_code=settings.trust_remote_code)
            net.to(getattr(torch, settings.dtype))
            new: list[str] = []
        else:
            if settings.name == "minilm" and (folder := Path(resolve_name("minilm"))).is_dir():
                check_minilm(folder)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                net, info = AUTO_CLASSES[kind].from_pretrained(
                    **common,
                    **sizes,
                    **quantized,
                    dtype=getattr(torch, settings.dtype),
                    ignore_mismatched_sizes=bool(sizes),
                    output_loading_info=True,
                )
            keep_unpacked(net)
            new = net.drawn_names = sorted(info["missing_keys"])  # by the name, for the fingerprint
            refuse_new_blocks(settings, kind, new)
    refuse_other_senses(settings, kind, net.config)
    return net.eval().requires_grad_(False), own_head(net, new) if sizes else ()


def own_head(net: Any, new: Sequence[str]) -> tuple[str, ...]:
    """Return the modules of a classification model's head: those outside its base model, and the new ones inside."""
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in net.named_children()}
    base = net.base_model_prefix
    if base not in sizes:  # CLIP's classifier has the vision model of a "clip" that is not there
        base = max(sizes, key=lambda name: sizes[name])
    outside = [name for name, size in sizes.items() if size and name != base]
    inside = [".".join(name.split(".")[:2]) for name in new if name.startswith(f"{base}.")]
    return tuple(dict.fromkeys([*outside, *inside]))


def refuse_other_senses(settings: ModelSettings, kind: Kind, config: Any) -> None:
    """Raise InputError where a model that reads images would be given texts, which it cannot read."""
    if kind != "image_classification" and hasattr(config, "image_size"):
        raise InputError(
            f"model.name: {settings.name!r} reads images: set task.name = 'image_classification', and data.name to "
            f"images"
        )


def refuse_new_blocks(settings: ModelSettings, kind: Kind, new: Sequence[str]) -> None:
    """Raise InputError where the checkpoint lacks a block, or any part of a language model; only a head may be new."""
    wrong = new if kind == "causal_lm" else [name for name in new if NUMBERED.match(name)]
    if wrong:
        raise InputError(
            f"model.name: {settings.name!r} has no weights for {wrong[0]} and {len(wrong) - 1} more: "
            f"name a checkpoint of a model for this task"
        )


def quantization(settings: ModelSettings, kind: Kind, labels: Sequence[str]) -> dict[str, Any]:
    """Return further arguments to load a quantised base. Linear modules outside the blocks, such as heads, stay whole.

    Raises:
        InputError: a package for it is not installed.
    """
    if settings.quantization == "none":
        return {}
    for package in ("bitsandbytes", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"model.quantization = {settings.quantization!r} needs {package}: pip install 'hellora[quantized]'"
            )
    net, _ = load_network(settings, kind, labels, seed=0, weights=False)
    config = transformers.BitsAndBytesConfig(
        **QUANTIZATION[settings.quantization],
        bnb_4bit_compute_dtype=getattr(torch, settings.dtype),
        llm_int8_skip_modules=outside_blocks(net),
    )
    return {"quantization_config": config, "device_map": {"": "cpu"}}


def outside_blocks(net: nn.Module) -> list[str]:
    """Name the linear modules outside the blocks, which are never quantised."""
    return [name for name, _ in linear_modules(net) if not NUMBERED.match(name)]


def quantized_away(net: nn.Module, settings: ModelSettings) -> int:
    """Count the bytes that quantisation takes off the weights of `net`, which is whole. A weight is unpacked to be
    used, so that the largest one counts as whole."""
    if settings.quantization == "none":
        return 0
    numbers = [module.get_parameter("weight").numel() for name, module in linear_modules(net) if NUMBERED.match(name)]
    whole = getattr(torch, settings.dtype).itemsize
    return int((whole - QUANTIZED_BYTES[settings.quantization]) * sum(numbers) - whole * max(numbers, default=0))


def keep_unpacked(net: Any) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew when they are first used without gradients, as it does on some
    processors; from then on they would give none."""
    for module in net.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def task_of(settings: ModelSettings) -> str:
    """Return the task that a model's config names: by its architecture, else by what the model reads."""
    with loading(settings) as common:
        config = transformers.AutoConfig.from_pretrained(**common)
    architectures = " ".join(getattr(config, "architectures", None) or ())
    if "ForCausalLM" in architectures or "LMHeadModel" in architectures:
        return "causal_lm"
    return "image_classification" if hasattr(config, "image_size") else "sequence_classification"


def load_tokenizer(settings: ModelSettings) -> Any:
    """Load the model's tokenizer, and give it a padding token where it has none."""
    with loading(settings) as common:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**common)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a folder without its files
        raise InputError(
            f"model.name: {settings.name!r} has no tokenizer: save it there, too (tokenizer.save_pretrained), or copy "
            f"its files, such as tokenizer.json"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_image_processor(settings: ModelSettings) -> Any:
    """Load the model's image processor, which turns PIL images into `pixel_values`."""
    with loading(settings) as common:
        return transformers.AutoImageProcessor.from_pretrained(**common)


def adapter_spec(net: nn.Module, settings: ModelSettings, language_model: bool = False) -> AdapterSpec:
    """Say where the adapter sits: in the targeted linear modules, each with the transformer block that it belongs to.

    A module's layer is parsed from its name: see NUMBERED.

    Raises:
        InputError: nothing in the model matches the targets.
    """
    linear = dict(linear_modules(net))
    in_blocks = {name: match[1] for name in linear if (match := NUMBERED.match(name))}
    if not in_blocks:
        raise InputError(
            f"model.name: {settings.name!r} has no linear module inside numbered blocks, where LoRA could sit: name a "
            f"transformer"
        )
    targets = settings.targets or default_targets(in_blocks, language_model)
    chosen = [n for n in in_blocks if any(n == t or n.endswith(f".{t}") for t in targets)]
    if not chosen:
        leaves = ", ".join(sorted({name.rpartition(".")[2] for name in in_blocks}))
        raise InputError(f"model.targets: no linear module is named {' or '.join(targets)}: choose among {leaves}")
    layers = list(dict.fromkeys(in_blocks[name] for name in chosen))
    modules = []
    for name in chosen:
        d_out, d_in = shape_of(linear[name])
        modules.append(ModuleSpec(name, layers.index(in_blocks[name]), d_in, d_out))
    return AdapterSpec(tuple(modules), tuple(layers), settings.rank, settings.scale)


def linear_modules(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Find the linear modules, with their names."""
    return ((name, module) for name, module in net.named_modules() if isinstance(module, nn.Linear | Conv1D))


def default_targets(names: Iterable[str], language_model: bool) -> tuple[str, ...]:
    """Return the first known group of attention projections that the model has; for a language model all four."""
    leaves = {name.rpartition(".")[2] for name in names}
    if language_model and leaves.issuperset(LANGUAGE_MODEL_NAMES):
        return LANGUAGE_MODEL_NAMES
    for group in ATTENTION_NAMES:
        if leaves.issuperset(group):
            return group
    raise InputError(f"model.targets: give the modules to adapt; this model has {', '.join(sorted(leaves))}")


def shape_of(linear: nn.Module) -> tuple[int, int]:
    """Return (d_out, d_in) of a linear module. The weight of a quantised one has another shape; that of GPT-2's Conv1D
    is (d_in, d_out)."""
    if isinstance(linear, nn.Linear):
        return linear.out_features, linear.in_features
    d_in, d_out = linear.get_parameter("weight").shape
    return d_out, d_in
