"""Choose where LoRA sits where nobody says it: in the attention projections that are usual for the model."""

import re
from collections.abc import Iterable

from hellora.core.errors import InputError

# The block of a module: its name up to its first number; or up to its second, where stages hold blocks (Swin).
NUMBERED = re.compile(r"^(.*?\.\d+(?:\.blocks\.\d+)?)\.")
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
ALL_LINEAR = "all-linear"  # peft's name for all of them
LANGUAGE_MODEL_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj")


def default_targets(names: Iterable[str], language_model: bool) -> tuple[str, ...]:
    """Return the first known group of attention projections that the model has; for a language model all four."""
    leaves = {name.rpartition(".")[2] for name in names}
    if language_model and leaves.issuperset(LANGUAGE_MODEL_NAMES):
        return LANGUAGE_MODEL_NAMES
    for group in ATTENTION_NAMES:
        if leaves.issuperset(group):
            return group
    raise InputError(f"model.targets: give the modules to adapt; this model has {', '.join(sorted(leaves))}")
