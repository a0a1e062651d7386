"""Tell what a model is made for from its config.json alone, without loading anything."""

import json
from pathlib import Path
from typing import Literal

Family = Literal["images", "decoder", "encoder-decoder", "encoder", ""]  # "": it is not known here
EMBEDDED: dict[str, Family] = {"minilm": "encoder", "smollm2": "decoder"}


def family_of(name: str) -> Family:
    """Tell what a model is made for; of one of the hub only where its config was downloaded before."""
    if name in EMBEDDED:
        return EMBEDDED[name]
    try:
        config = json.loads(config_file(name).read_text())
        written = " ".join(config.get("architectures") or ())
    except (OSError, ValueError, TypeError, AttributeError):
        return ""
    if "image_size" in config or "ForImageClassification" in written:
        return "images"
    if config.get("is_encoder_decoder"):
        return "encoder-decoder"
    return "decoder" if "ForCausalLM" in written or "LMHeadModel" in written else "encoder"


def config_file(name: str) -> Path:
    """Return the config of a folder, or of a model of the hub in the cache.

    Raises:
        OSError: there is none here; ValueError: it is no name of the hub.
    """
    if (folder := Path(name).expanduser()).is_dir():
        return folder / "config.json"
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    if not isinstance(found, str):
        raise FileNotFoundError(name)
    return Path(found)
