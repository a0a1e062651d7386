"""Choose how attention is computed, where somebody names it; else transformers chooses."""

import importlib.util
from typing import Any

from hellora.core.errors import InputError, one_line
from hellora.model.settings import ModelSettings

# Without its package transformers fetches a kernel of the same name from the hub, which is native code.
PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
EVERYWHERE = ("eager", "sdpa")  # the others are fused as sdpa is, and not there on every machine


def attention(settings: ModelSettings, weights: bool = True) -> dict[str, Any]:
    """Return further arguments to load a model, or its structure alone: that is to be had on any machine, so that costs
    are counted with sdpa in the place of another fused kernel.

    Raises:
        InputError: the package of a kernel is not installed.
    """
    name = settings.attn_implementation
    if not name or not (weights or name in EVERYWHERE):
        return {}
    package = PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None and not settings.trust_remote_code:
        raise InputError(f"model.attn_implementation = {name!r} needs the package {package}: install it, or remove it")
    return {"attn_implementation": name}


def no_attention(settings: ModelSettings, error: Exception) -> InputError:
    """Return the refusal of a model that does not bear the attention that is asked for."""
    why = one_line(error).partition(". ")[0]
    return InputError(
        f"model.attn_implementation = {settings.attn_implementation!r} cannot be used here with {settings.name!r} "
        f"({why[:200]}): remove it, or choose sdpa or eager"
    )
