"""Decide the split and the class of every image in a folder: the class is the first folder below the split."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hellora.core.errors import InputError
from hellora.data.file_names import Layout, folder_split, split_of, stem_of

METADATA = "metadata"  # the table beside images that says more of each, by its column file_name


def image_layout(
    folder: Path, pictures: Sequence[Path], tables: Sequence[Path], wanted: Sequence[str], subset: str = ""
) -> Layout:
    """Decide the split and the class of every image.

    Raises:
        InputError: it cannot be told what is a split and what a class.
    """
    root = folder / subset
    if subset and not root.is_dir():
        raise InputError(f"data.subset: {folder} has no folder '{subset}': correct it")
    layout = Layout(images=True)
    layout.unused = [(path, "outside of data.subset") for path in pictures if not path.is_relative_to(root)]
    pictures = [path for path in pictures if path.is_relative_to(root)]
    below = first_folders(root, pictures)
    while len(below) == 1 and (name := next(iter(below))) and folder_split(name, wanted) is None:
        root = root / name  # one folder holds everything
        below = first_folders(root, pictures)
    splits = {name: split for name in below if name and (split := folder_split(name, wanted)) is not None}
    if not are_splits(root, below, splits, wanted):
        check_no_splits(root, below, wanted)
        add_split(layout, wanted[0], root, pictures, tables)
        return layout
    for name, split in splits.items():
        if split in layout.splits:
            raise InputError(f"data.test_split: {root} has several folders that mean '{split}': name one, or move one")
        add_split(layout, split, root / name, below[name], tables)
    others = [path for name, paths in below.items() if name not in splits for path in paths]
    layout.unused += [(path, "in no split") for path in others]
    return layout


def first_folders(root: Path, pictures: Iterable[Path]) -> dict[str, list[Path]]:
    """Group images by the first folder below `root`; under "" those that lie in it."""
    groups: dict[str, list[Path]] = {}
    for path in pictures:
        parts = path.relative_to(root).parts
        groups.setdefault(parts[0] if len(parts) > 1 else "", []).append(path)
    return groups


def are_splits(
    root: Path, below: Mapping[str, Sequence[Path]], splits: Mapping[str, str], wanted: Sequence[str]
) -> bool:
    """Say whether the top folders with names of splits are splits, and not classes that have such a name."""
    if wanted[0] not in splits.values():
        return False
    nested = [name for name in splits if "" not in first_folders(root / name, below[name])]
    others = [name for name in below if name and name not in splits]
    if not others:
        return bool(nested) or "" not in below
    if not nested:
        return False
    if len(splits) > 1 and wanted[0] in (splits[name] for name in nested):
        return True
    raise InputError(
        f"data.name: {root} has '{nested[0]}' beside '{others[0]}', and it cannot be told whether these are splits or "
        f"classes: put classes into a folder '{wanted[0]}', or move what is not used elsewhere"
    )


def check_no_splits(root: Path, below: Mapping[str, Sequence[Path]], wanted: Sequence[str]) -> None:
    """Raise InputError where folders that would be classes look like splits, or hold some."""
    inner = {name: first_folders(root / name, paths) for name, paths in below.items() if name}
    for name, folders in inner.items():
        held = next((each for each in sorted(folders) if folder_split(each, wanted) is not None), None)
        if held is not None and len(folders) > 1:
            raise InputError(
                f"data.name: {root / name} holds the folder '{held}', and it cannot be told whether '{name}' is a "
                f"class: set data.name to {root / name}, or put the splits above the classes"
            )
    words = {split_of(word, wanted) for name in inner for word in re.split(r"[-_. \d]+", name)} - {None}
    if wanted[0] in words and len(words) > 1 and all("" not in folders for folders in inner.values()):
        raise InputError(
            f"data.name: the folders {', '.join(sorted(inner))} in {root} look like splits, and would be classes: call "
            f"them {wanted[0]} and test, or set data.train_split and data.test_split"
        )


def add_split(layout: Layout, split: str, root: Path, pictures: Sequence[Path], tables: Iterable[Path]) -> None:
    """Add a split, whose classes are the first folders below `root`; where these say nothing, a table may."""
    layout.roots[split] = root
    by_class = first_folders(root, pictures)
    loose = by_class.pop("", [])
    found = [path for path in tables if root.is_relative_to(path.parent) and stem_of(path).lower() == METADATA]
    if len(by_class) <= 1 and found:
        layout.splits[split] = list(pictures)
        layout.metadata[split] = max(found, key=lambda path: len(path.parts))  # the nearest
        return
    if not by_class:
        layout.splits[split] = loose
        return
    layout.splits[split] = [path for paths in by_class.values() for path in paths]
    layout.classes |= {path: name for name, paths in by_class.items() for path in paths}
    layout.unused += [(path, "in no folder of a class") for path in loose]
