"""Give a network another function to compute attention by. Beside `load`, no other file imports transformers."""

import sys
from collections.abc import Callable
from typing import Any

import transformers
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from hellora.model.normalise import text_config


def attention_of(name: str, module: Any) -> Callable[..., Any]:
    """Return the function that computes attention under a name, for a module of a network."""
    eager = vars(sys.modules[type(module).__module__]).get("eager_attention_forward")
    found: Callable[..., Any] = transformers.AttentionInterface().get(name, eager)
    return found


def name_of_attention(net: Any) -> str:
    """Name the function by which a network computes attention."""
    return str(text_config(net.config)._attn_implementation)


def register_attention(name: str, own: str, attention: Callable[..., Any]) -> None:
    """Make a function known by which networks may compute attention. Their masks are those that `own` is given."""
    transformers.AttentionInterface.register(name, attention)
    transformers.AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[own])


def set_attention(net: Any, name: str) -> None:
    """Let a network compute attention by the function of a name.

    Raises:
        ValueError: it computes attention by code of its own.
    """
    net.set_attn_implementation(name)
    if name_of_attention(net) != name:
        raise ValueError("its attention is code of its own")
