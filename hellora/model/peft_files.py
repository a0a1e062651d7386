"""Write an adapter as PEFT's files, read it back, and write the base with it in its weights.

peft itself is not imported: that takes seconds (11 of the processor with bitsandbytes), and a config is JSON.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hellora.core.algebra import joined
from hellora.core.errors import InputError
from hellora.core.types import Adapter, LoraPair
from hellora.model.fingerprint import persistent
from hellora.model.location import EMBEDDED
from hellora.model.resident import BaseModel
from hellora.model.settings import Kind, ModelSettings
from hellora.model.whole import copies

PEFT_PREFIX = "base_model.model."  # of the name of every tensor
CONFIG_FILE, WEIGHTS_FILE, HEAD_FILE = "adapter_config.json", "adapter_model.safetensors", "head.safetensors"
# Of PEFT's LoraConfig, what is the same for all our adapters; whatever is not written has PEFT's default.
PLAIN_LORA: dict[str, Any] = {
    "alpha_pattern": {},
    "bias": "none",
    "inference_mode": True,
    "peft_type": "LORA",
    "rank_pattern": {},
    "use_dora": False,
    "use_rslora": False,
}
PEFT_TASKS: dict[Kind, str | None] = {
    "features": "FEATURE_EXTRACTION",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "image_classification": None,
    "causal_lm": "CAUSAL_LM",
    "seq2seq": "SEQ_2_SEQ_LM",
}


def save_peft(adapter: Adapter, folder: Path, base: BaseModel, settings: ModelSettings, kind: Kind) -> None:
    """Write `adapter` as PEFT does: adapter_config.json and adapter_model.safetensors.

    What trains whole of the network goes inside (modules_to_save); hellora's own head beside it, as head.safetensors. A
    residual becomes further rank components of its module. Modules of smaller rank get components of zeros up to the
    largest, for tools that take alpha / rank for the scale. Prototypes are adapters of their own, and not written.
    """
    pairs = {n: joined(p, adapter.residual[n]) if n in adapter.residual else p for n, p in adapter.pairs.items()}
    rank = max(pair.rank for pair in pairs.values())
    config = PLAIN_LORA | {
        "base_model_name_or_path": EMBEDDED.get(settings.name, settings.name),
        "fan_in_fan_out": not isinstance(base.net.get_submodule(base.spec.modules[0].name), nn.Linear),
        "lora_alpha": base.spec.scale * rank,  # a float works as well; of rsLoRA, too, whose scale is that of any rank
        "lora_dropout": settings.dropout,
        "modules_to_save": to_save(base),
        "r": rank,
        "revision": getattr(base.net.config, "_commit_hash", None),
        "target_modules": sorted(module.name for module in base.spec.modules),
        "task_type": PEFT_TASKS[kind],
    }
    if any(root is base.net and len(places) > 1 for places in base.places.values() for root, _ in places):
        config["ensure_weight_tying"] = True  # else peft unties, with a warning; older ones do not know the setting
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True))
    tensors = {}
    for module, pair in pairs.items():
        more = rank - pair.rank
        tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"] = nn.functional.pad(pair.A, (0, 0, 0, more)).contiguous()
        tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"] = nn.functional.pad(pair.B, (0, more)).contiguous()
    tensors |= {f"{PEFT_PREFIX}{name}": tensor.contiguous() for name, tensor in of_network(adapter, base).items()}
    if base.head is not None:
        save_head(adapter, folder, base)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def of_network(adapter: Adapter, base: BaseModel) -> dict[str, torch.Tensor]:
    """Return what trains whole of the network, with the statistics that stand in the same modules.

    A tensor that is tied comes under each of its names: peft ties nothing that it is told to save.
    """
    inside = tuple(f"{name}." for name in base.head_modules)
    trained = copies(base.places, base.net, adapter.head)
    statistics = {n: b.cpu() for n, b in persistent(base.net) if n.startswith(inside) and n not in trained}
    return trained | statistics


def to_save(base: BaseModel) -> list[str] | None:
    """Name the modules that train whole as peft finds them: by what their names end with, letter by letter."""
    owners = {name.rpartition(".")[0] for places in base.places.values() for root, name in places if root is base.net}
    modules = [*base.head_modules, *sorted(name for name in owners if not within(name, base.head_modules))]
    every, found = [name for name, _ in base.net.named_modules()], list[str]()
    for module in modules:
        alike = [name for name in every if name != module and name.endswith(module)]
        found += [name for name in sorted(owners) if within(name, [module])] if alike else [module]
    return found or None


def within(name: str, modules: Sequence[str]) -> bool:
    """Return True if a module is one of these, or in one of them."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def save_head(adapter: Adapter, folder: Path, base: BaseModel) -> None:
    """Write the part of the head that is hellora's own."""
    assert base.head is not None
    own = copies(base.places, base.head, adapter.head)
    save_file({name: value.contiguous() for name, value in own.items()}, folder / HEAD_FILE)


def load_peft(folder: Path, base: BaseModel) -> Adapter:
    """Read the adapter that `save_peft` wrote to `folder`.

    A residual stays what it became: rank components of its module.

    Raises:
        InputError: a file is absent or damaged, or belongs to another base model.
    """
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
        pairs = {}
        for module in base.spec.modules:
            A, B = (tensors[f"{PEFT_PREFIX}{module.name}.lora_{factor}.weight"] for factor in "AB")
            if (A.shape[1], B.shape[0]) != (module.d_in, module.d_out):
                raise ValueError(
                    f"{module.name} maps {A.shape[1]} to {B.shape[0]}, not {module.d_in} to {module.d_out}"
                )
            pairs[module.name] = LoraPair(A, B, base.spec.scale)
        head = load_head(folder) if base.head is not None else {}
        for name, ((root, place), *_) in base.places.items():
            if root is base.net:
                head[name] = tensors[f"{PEFT_PREFIX}{place}"]
        return Adapter(pairs, head)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        why = " ".join(str(error).split())[:300]
        raise InputError(
            f"the adapter in {folder} is damaged, or of another base model ({why}): export it again"
        ) from error


def load_head(folder: Path) -> dict[str, torch.Tensor]:
    head: dict[str, torch.Tensor] = load_file(folder / HEAD_FILE)
    return head


def save_merged(adapter: Adapter, folder: Path, base: BaseModel, settings: ModelSettings) -> None:
    """Write the base with `adapter` added to its weights, as transformers does, with the tokenizer or image processor.

    A head that is the network's own is inside; hellora's own goes beside, as head.safetensors.

    Raises:
        InputError: the base is quantised; nothing can be added to its weights without rounding them again.
    """
    if settings.quantization != "none":
        raise InputError(
            f"--merged: the base is quantised ({settings.quantization}), and nothing is added to such weights: "
            f"leave out --merged, and load the adapter beside them"
        )
    with base.adapted(adapter):
        base.net.save_pretrained(str(folder))
    base.processor.save_pretrained(str(folder))
    if base.head is not None:
        save_head(adapter, folder, base)
