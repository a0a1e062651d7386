"""Load a model, and find the modules in it where LoRA sits. No other file but `attention` imports transformers."""

import gc
import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from hellora.core.errors import InputError
from hellora.core.types import AdapterSpec, ModuleSpec
from hellora.model.attention_choice import attention, no_attention
from hellora.model.chat import turn_ends
from hellora.model.location import HOLDS_ADAPTER, check_minilm, place_of, resolve_name
from hellora.model.memory import align, keep_unpacked
from hellora.model.normalise import end_ids, settle_tokenizer, text_config
from hellora.model.own_heads import OTHER_SIZE, class_names, match, own_head, settle_head, sizes_of
from hellora.model.refusals import refuse_kernels, refuse_new_blocks, refuse_other_senses, refuse_other_shapes, why_not
from hellora.model.settings import CLASSIFIES, QUANTIZED_BYTES, Kind, ModelSettings, Quantization
from hellora.model.targets import ALL_LINEAR, NUMBERED, default_targets

AUTO_CLASSES: dict[Kind, Any] = {
    "features": transformers.AutoModel,
    "sequence_classification": transformers.AutoModelForSequenceClassification,
    "token_classification": transformers.AutoModelForTokenClassification,
    "image_classification": transformers.AutoModelForImageClassification,
    "causal_lm": transformers.AutoModelForCausalLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
}
# What bitsandbytes is asked for; 4bit as in QLoRA (arXiv 2305.14314).
QUANTIZATION: dict[Quantization, dict[str, Any]] = {
    "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}

transformers_logging.disable_progress_bar()
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of each layer's every call


@contextmanager
def loading(settings: ModelSettings) -> Iterator[dict[str, Any]]:
    """Lend the arguments common to every load, and turn whatever transformers raises into one line."""
    common = {
        "pretrained_model_name_or_path": place_of(settings),
        "trust_remote_code": settings.trust_remote_code,
    }
    verbosity, collecting = transformers_logging.get_verbosity(), gc.isenabled()
    transformers_logging.set_verbosity_error()
    gc.disable()  # it would look through all that transformers imports for a model, again and again: 15 % of the time
    try:
        yield common
    except InputError:
        raise
    except Exception as error:  # readers of damaged files raise almost anything
        raise InputError(f"model.name: {why_not(settings.name, error)}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if collecting:
            gc.enable()


def config_of(common: Mapping[str, Any], **more: Any) -> Any:
    """Load a model's config. Raise InputError where it would have code run that nobody has asked for."""
    config = transformers.AutoConfig.from_pretrained(**common, **more)
    if not common["trust_remote_code"]:
        refuse_kernels(common["pretrained_model_name_or_path"], config)
    return config


def load_network(
    settings: ModelSettings,
    kind: Kind,
    labels: Sequence[str],
    seed: int,
    weights: bool = True,
    notices: list[str] | None = None,
) -> tuple[Any, tuple[str, ...]]:
    """Load the Hugging Face model on the CPU, in eval mode, without gradients; name the modules of its own head.

    The head is what a classification model has outside its base model (classifier, pre_classifier, score), and
    whatever the checkpoint had no weights for. New weights are drawn from `seed`. The classes of a head that the
    checkpoint has are put into the order of `labels`, by name; `notices` gets what a person should know of it.
    `weights=False` builds the same module tree on the meta device from the config alone.
    """
    classes = class_names(labels, settings.classes or len(labels)) if kind in CLASSIFIES else ()
    sizes = sizes_of(classes)
    if not weights:
        net, new = bare(settings, kind, sizes), list[str]()
    else:
        net, new = pretrained(settings, kind, classes, len(labels), seed, [] if notices is None else notices)
        keep_unpacked(net)
        align(net)
        refuse_new_blocks(settings.name, kind, new)
    refuse_other_senses(settings.name, kind, net.config)
    return net.eval().requires_grad_(False), own_head(net, new) if sizes else ()


def bare(settings: ModelSettings, kind: Kind, sizes: Mapping[str, Any]) -> Any:
    """Build the module tree on the meta device, from the config alone."""
    with loading(settings) as common:
        config = config_of(common, **sizes)
        config.architectures = config.architectures or []  # where a kind has two classes, transformers looks in there
        return empty(settings, kind, config, weights=False).to(settings.torch_dtype)


def empty(settings: ModelSettings, kind: Kind, config: Any, weights: bool) -> Any:
    """Make the model of a config on the meta device; `weights` says whether its attention must be to be had here."""
    how = attention(settings, weights)
    try:
        with torch.device("meta"):
            return AUTO_CLASSES[kind].from_config(config, trust_remote_code=settings.trust_remote_code, **how)
    except (ValueError, ImportError) as error:
        if how:
            raise no_attention(settings, error) from error
        raise


def pretrained(
    settings: ModelSettings, kind: Kind, classes: Sequence[str], known: int, seed: int, notices: list[str]
) -> tuple[Any, list[str]]:
    """Load a checkpoint, its head in the order of `classes`, of which the first `known` are the data's; name the
    weights that it lacks."""
    if settings.name == "minilm" and (folder := Path(resolve_name("minilm"))).is_dir():
        check_minilm(folder)
    sizes, quantized = sizes_of(classes), quantization(settings, kind, classes)
    with loading(settings) as common, torch.random.fork_rng(devices=[]):
        config = config_of(common)
        theirs = config.id2label if classes else {}
        found = match([str(theirs[row]) for row in sorted(theirs)], classes, known)
        as_it_is = not found.drawn and len(theirs) != len(classes)  # some of its rows are taken
        if how := attention(settings):
            empty(settings, kind, config, weights=True)
        torch.manual_seed(seed)
        net, info = AUTO_CLASSES[kind].from_pretrained(
            **common,
            **({} if as_it_is else sizes),
            **quantized,
            **how,
            dtype=settings.torch_dtype,
            weights_only=True,  # of a pickle, tensors and nothing that runs
            ignore_mismatched_sizes=bool(sizes),
            output_loading_info=True,
        )
    if getattr(net, "_hf_peft_config_loaded", False):
        raise InputError(HOLDS_ADAPTER.format(settings.name))
    new = net.drawn_names = sorted(info["missing_keys"])  # by the name, for the fingerprint
    if classes:
        rows = len(theirs) if as_it_is else len(classes)
        one_more = sizes_of(tuple(map(str, range(rows + 1))))
        changed = {key[0] for key in info["mismatched_keys"]}
        refuse_other_shapes(settings.name, net, changed)
        word = settle_head(net, found, rows, frozenset({*new, *changed}), lambda: bare(settings, kind, one_more), seed)
        word = (found.word or OTHER_SIZE) if changed else word
        notices += [word] if word else []
        net.config.update(sizes)
    return net, new


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
        bnb_4bit_compute_dtype=settings.torch_dtype,
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
    whole = settings.torch_dtype.itemsize
    return int((whole - QUANTIZED_BYTES[settings.quantization]) * sum(numbers) - whole * max(numbers, default=0))


def task_of(settings: ModelSettings) -> str:
    """Return the task that a model's config names: by its architecture, else by what the model reads."""
    with loading(settings) as common:
        config = config_of(common)
    architectures = " ".join(getattr(config, "architectures", None) or ())
    if "ForCausalLM" in architectures or "LMHeadModel" in architectures:
        return "causal_lm"
    if "ForTokenClassification" in architectures:
        return "token_classification"
    if "ForConditionalGeneration" in architectures and getattr(config, "is_encoder_decoder", False):
        return "seq2seq"
    return "image_classification" if hasattr(config, "image_size") else "sequence_classification"


def load_tokenizer(settings: ModelSettings, rows: int | None = None) -> Any:
    """Load the model's tokenizer, which pads on the right, and has a padding token among the model's `rows`."""
    with loading(settings) as common:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**common)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a folder without its files
        raise InputError(
            f"model.name: {settings.name!r} has no tokenizer: save it there, too (tokenizer.save_pretrained), or copy "
            f"its files, such as tokenizer.json"
        )
    settle_tokenizer(tokenizer, rows)
    return tokenizer


@contextmanager
def greedy(net: Any, tokenizer: Any) -> Iterator[None]:
    """Let a language model choose the likeliest token at each place, up to an end of text of its own or its
    tokenizer's, or of a turn. Of what its folder says of generation, only how a decoder begins is kept."""
    own = net.generation_config
    ends = [*end_ids(tokenizer, text_config(net.config), own), *turn_ends(tokenizer)]
    net.generation_config = transformers.GenerationConfig(
        eos_token_id=ends or None, do_sample=False, num_beams=1, **first_tokens(net)
    )
    try:
        yield
    finally:
        net.generation_config = own


def first_tokens(net: Any) -> dict[str, int]:
    """Return the tokens with which the decoder of an encoder-decoder begins, as its folder says; {} of other models."""
    names = ("decoder_start_token_id", "forced_bos_token_id") if net.config.is_encoder_decoder else ()
    said = {name: getattr(net.generation_config, name, None) for name in names}
    said = {name: getattr(net.config, name, None) if token is None else token for name, token in said.items()}
    return {name: int(token) for name, token in said.items() if token is not None}


def load_image_processor(settings: ModelSettings) -> Any:
    """Load the model's image processor, which turns PIL images into `pixel_values`."""
    with loading(settings) as common:
        return transformers.AutoImageProcessor.from_pretrained(**common)


def adapter_spec(net: nn.Module, settings: ModelSettings, language_model: bool = False) -> AdapterSpec:
    """Say where the adapter sits: in the targeted linear modules, each with the transformer block that it belongs to.

    A module's layer is parsed from its name: see NUMBERED. "all-linear" takes every linear module of the blocks, as
    peft does; what peft takes besides, such as a pooler, has no layer that a client could be allocated.

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
    all_linear = ALL_LINEAR in targets
    chosen = [n for n in in_blocks if all_linear or any(n == t or n.endswith(f".{t}") for t in targets)]
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


def shape_of(linear: nn.Module) -> tuple[int, int]:
    """Return (d_out, d_in) of a linear module. The weight of a quantised one has another shape; that of GPT-2's Conv1D
    is (d_in, d_out)."""
    if isinstance(linear, nn.Linear):
        return linear.out_features, linear.in_features
    d_in, d_out = linear.get_parameter("weight").shape
    return d_out, d_in
