"""Decide the split and the class of every image in a folder: the class is the first folder below the split."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hellora.core.errors import InputError
from hellora.data.file_names import Layout, folder_split, stem_of

METADATA = "metadata"  # the table beside images that says more of each, by its column file_name
WRAPPERS = {"data", "images", "imgs", "dataset"}  # folders that only hold the classes or splits of images


def image_layout(folder: Path, pictures: Sequence[Path], tables: Iterable[Path], wanted: Sequence[str]) -> Layout:
    """Decide the split and the class of every image."""
    root, below = folder, first_folders(folder, pictures)
    while len(below) == 1 and (name := next(iter(below))) in WRAPPERS:
        root = root / name
        below = first_folders(root, pictures)
    layout = Layout(images=True)
    splits = {name: split for name in below if name and (split := folder_split(name, wanted)) is not None}
    if not are_splits(root, below, splits, wanted):
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
    if len(splits) > 1 and len(nested) == len(splits):
        return True
    raise InputError(
        f"data.name: {root} has '{nested[0]}' beside '{others[0]}', and it cannot be told whether these are splits or "
        f"classes: put classes into a folder 'train', or move what is not used elsewhere"
    )


def add_split(layout: Layout, split: str, root: Path, pictures: Sequence[Path], tables: Iterable[Path]) -> None:
    """Add a split, whose classes are the first folders below `root`; without folders, a table may say more."""
    layout.roots[split] = root
    by_class = first_folders(root, pictures)
    loose = by_class.pop("", [])
    if not by_class:
        layout.splits[split] = loose
        found = [path for path in tables if path.parent == root and stem_of(path).lower() == METADATA]
        if found:
            layout.metadata[split] = found[0]
        return
    layout.splits[split] = [path for paths in by_class.values() for path in paths]
    layout.classes |= {path: name for name, paths in by_class.items() for path in paths}
    layout.unused += [(path, "in no folder of a class") for path in loose]
