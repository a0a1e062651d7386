"""Read which files a repository of the Hub declares as its splits, in the heading of its README.md.

The format: https://huggingface.co/docs/hub/datasets-manual-configuration
"""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import DatasetCard

from hellora.core.errors import InputError, one_line
from hellora.data.file_names import folder_split


def declared_files(folder: Path, subset: str, wanted: Sequence[str]) -> dict[str, list[Path]]:
    """Return the files of each split as the README.md of a folder declares them; {} where it declares none.

    Raises:
        InputError: what is declared is not there, or has several configurations and `subset` names none of them.
    """
    card = folder / "README.md"
    text = card.read_text("utf-8-sig", errors="replace") if card.is_file() else ""
    if not text.startswith("---"):
        return {}
    try:
        configs = DatasetCard(text, ignore_metadata_errors=True).data.get("configs") or []
        declared = {str(each.get("config_name", "default")): each for each in configs}
    except Exception as error:  # whatever YAML readers raise
        raise InputError(f"data.name: the heading of {card.name} cannot be read ({one_line(error)[:200]})") from error
    if not any({"data_files", "data_dir"} & each.keys() for each in declared.values()):
        return {}
    name = subset or (next(iter(declared)) if len(declared) == 1 else default_of(declared))
    if name not in declared:
        raise InputError(f"data.subset: {folder} has the configurations {', '.join(declared)}: name one of them")
    if "data_files" not in declared[name]:
        where = folder / str(declared[name].get("data_dir", ""))
        raise InputError(f"data.name: README.md in {folder} declares a folder for '{name}': set data.name to {where}")
    files: dict[str, list[Path]] = {}
    names: dict[str, str] = {}
    for split, pattern in patterns(declared[name]["data_files"], wanted[0]):
        known = split if split in wanted else folder_split(split, wanted) or split
        if names.setdefault(known, split) != split:
            known = split  # another one has that name already
        files.setdefault(known, []).extend(matching(folder, pattern))
    everything = [path for paths in files.values() for path in paths]
    if twice := [path for path in everything if everything.count(path) > 1]:
        raise InputError(f"data.name: README.md in {folder} declares {twice[0].name} twice: correct it")
    return files


def matching(folder: Path, pattern: str) -> list[Path]:
    """Return the files below a folder that a pattern means, sorted; hidden ones are none."""
    if PurePath(pattern).is_absolute() or ".." in PurePath(pattern).parts:
        raise InputError(f"data.name: README.md in {folder} declares {pattern}, which is not below it: correct it")
    if pattern.endswith("**") or (folder / pattern).is_dir():
        pattern = f"{pattern.rstrip('*').rstrip('/')}/**/*".lstrip("/")
    found = sorted(
        path
        for path in folder.glob(pattern)
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise InputError(f"data.name: {folder} declares {pattern} in its README.md, and has no such file")
    return found


def default_of(declared: dict[str, Any]) -> str:
    """Return the name of the configuration that is read where none is named."""
    return next((name for name, each in declared.items() if each.get("default")), "default")


def patterns(files: Any, train: str) -> Iterator[tuple[str, str]]:
    """Yield each split and a pattern of its files: a list of both, or patterns of the training split."""
    if isinstance(files, dict):
        files = [{"split": split, "path": path} for split, path in files.items()]
    for each in files if isinstance(files, list) else [files]:
        split, paths = (each.get("split", train), each.get("path", "")) if isinstance(each, dict) else (train, each)
        for path in paths if isinstance(paths, list) else [paths]:
            yield str(split), str(path)
