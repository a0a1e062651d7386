"""A loaded model in the place of a model's name. An experiment calls it by its fingerprint.

It is written to a folder for as long as it is used, and loaded from there like any other, so that the object itself is
never changed.
"""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

from hellora.core.errors import InputError, one_line
from hellora.core.given import GIVEN
from hellora.model.fingerprint import fingerprint, persistent


def lay_down(model: Any, processor: Any, folder: Path) -> str:
    """Write a loaded model, and its tokenizer or image processor, to a new folder; return the name of both.

    Raises:
        InputError: these are no model and tokenizer of transformers, or the model has adapters on it.
    """
    if not (hasattr(model, "save_pretrained") and hasattr(model, "config")):
        raise InputError(f"model must be a loaded model of transformers, or settings, not a {type(model).__name__}")
    if hasattr(model, "peft_config"):
        raise InputError("model has an adapter of peft on it: merge it first (model.merge_and_unload())")
    if not hasattr(processor, "save_pretrained"):
        raise InputError(
            f"tokenizer must be that of the model, or its image processor, not a {type(processor).__name__}"
        )
    try:
        model.save_pretrained(str(folder))
        processor.save_pretrained(str(folder))
    except Exception as error:  # a full disk; whatever a model's own code raises
        raise InputError(f"model cannot be written to {folder}: {one_line(error)[:300]}") from error
    known = processor.get_vocab() if hasattr(processor, "get_vocab") else processor.to_dict()
    read = blake2b(json.dumps(known, sort_keys=True, default=str).encode(), digest_size=4).hexdigest()
    return f"{GIVEN}{fingerprint(persistent(model))}-{read}"
