"""Write an adapter as PEFT's files, read it back, and write the base with it in its weights.

peft itself is not imported: that takes seconds (11 of the processor with bitsandbytes), and a config is JSON.
"""

import json
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
    "image_classification": None,
    "causal_lm": "CAUSAL_LM",
}


def save_peft(adapter: Adapter, folder: Path, base: BaseModel, settings: ModelSettings, kind: Kind) -> None:
    """Write `adapter` as PEFT does: adapter_config.json and adapter_model.safetensors.

    A head that is the network's own goes inside (modules_to_save); hellora's own goes beside, as head.safetensors. A
    residual becomes further rank components of its module. Modules of smaller rank get components of zeros up to the
    largest, for tools that take alpha / rank for the scale. Prototypes are adapters of their own, and not written.
    """
    pairs = {n: joined(p, adapter.residual[n]) if n in adapter.residual else p for n, p in adapter.pairs.items()}
    rank = max(pair.rank for pair in pairs.values())
    config = PLAIN_LORA | {
        "base_model_name_or_path": EMBEDDED.get(settings.name, settings.name),
        "fan_in_fan_out": not isinstance(base.net.get_submodule(base.spec.modules[0].name), nn.Linear),
        "lora_alpha": base.spec.scale * rank,  # a float works as well
        "lora_dropout": settings.dropout,
        "modules_to_save": list(base.head_modules) or None,
        "r": rank,
        "revision": getattr(base.net.config, "_commit_hash", None),
        "target_modules": sorted(module.name for module in base.spec.modules),
        "task_type": PEFT_TASKS[kind],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True))
    tensors = {}
    for module, pair in pairs.items():
        more = rank - pair.rank
        tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"] = nn.functional.pad(pair.A, (0, 0, 0, more)).contiguous()
        tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"] = nn.functional.pad(pair.B, (0, more)).contiguous()
    if base.head is None:
        inside = tuple(f"{name}." for name in base.head_modules)
        statistics = {n: b for n, b in persistent(base.net) if n.startswith(inside) and n not in base.head_names}
        tensors |= {f"{PEFT_PREFIX}{n}": t.cpu().contiguous() for n, t in (*adapter.head.items(), *statistics.items())}
    else:
        save_head(adapter, folder)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def save_head(adapter: Adapter, folder: Path) -> None:
    save_file({n: v.contiguous() for n, v in adapter.head.items()}, folder / HEAD_FILE)


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
        if base.head is not None:
            return Adapter(pairs, load_head(folder))
        return Adapter(pairs, {name: tensors[f"{PEFT_PREFIX}{name}"] for name in base.head_names})
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
        save_head(adapter, folder)
