"""Read which files a repository of the Hub declares as its splits, in the heading of its README.md.

The format: https://huggingface.co/docs/hub/datasets-manual-configuration
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard

from hellora.core.errors import InputError, one_line
from hellora.data.file_names import split_of


def declared_files(folder: Path, subset: str, wanted: Sequence[str]) -> dict[str, list[Path]]:
    """Return the files of each split as the README.md of a folder declares them; {} where it declares none.

    Raises:
        InputError: what is declared is not there, or has several configurations and `subset` names none of them.
    """
    card = folder / "README.md"
    if not card.is_file() or not card.read_bytes().startswith(b"---"):
        return {}
    try:
        configs = DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict().get("configs") or []
    except Exception as error:  # whatever YAML readers raise
        raise InputError(f"data.name: the heading of {card.name} cannot be read ({one_line(error)[:200]})") from error
    declared = {str(each.get("config_name", "default")): each for each in configs if each.get("data_files")}
    if not declared:
        return {}
    name = subset or (next(iter(declared)) if len(declared) == 1 else default_of(declared))
    if name not in declared:
        raise InputError(f"data.subset: {folder} has the configurations {', '.join(declared)}: name one of them")
    files: dict[str, list[Path]] = {}
    for split, pattern in patterns(declared[name]["data_files"], wanted[0]):
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if not found:
            raise InputError(f"data.name: {folder} declares {pattern} in its README.md, and has no such file")
        files.setdefault(split_of(split, wanted) or split, []).extend(found)
    everything = [path for paths in files.values() for path in paths]
    if twice := [path for path in everything if everything.count(path) > 1]:
        raise InputError(f"data.name: README.md in {folder} declares {twice[0].name} twice: correct it")
    return files


def default_of(declared: dict[str, Any]) -> str:
    """Return the name of the configuration that is read where none is named."""
    return next((name for name, each in declared.items() if each.get("default")), "default")


def patterns(files: Any, train: str) -> Iterator[tuple[str, str]]:
    """Yield each split and a pattern of its files: a list of both, or patterns of the training split."""
    if isinstance(files, dict):
        files = [{"split": split, "path": path} for split, path in files.items()]
    for each in files if isinstance(files, list) else [files]:
        split, paths = (each["split"], each["path"]) if isinstance(each, dict) else (train, each)
        for path in paths if isinstance(paths, list) else [paths]:
            yield str(split), str(path)
