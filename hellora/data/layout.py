"""Decide what the files of a folder are: which split each belongs to, of images which class, and what is not used.

Nothing is read here but names. Whatever is not used is listed with the reason.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from hellora.core.errors import InputError
from hellora.data.declared import declared_files
from hellora.data.file_names import DESCRIPTIONS, IMAGES, Layout, format_of, split_of, stem_of
from hellora.data.image_layout import image_layout
from hellora.data.table_layout import table_layout


def layout_of(folder: Path, wanted: Sequence[str], columns: str, subset: str = "") -> Layout:
    """Decide what the files of a folder are; `wanted` are the names of splits, the training split's first.

    Raises:
        InputError: there are no data, or it cannot be told which file belongs to which split.
    """
    files, hidden = visible_files(folder)
    declared = declared_files(folder, subset, wanted)
    pictures = [path for path in files if path.suffix.lower() in IMAGES]
    tables = [path for path in files if format_of(path) and path.name.lower() not in DESCRIPTIONS]
    layout = None
    if declared and all(format_of(path) for paths in declared.values() for path in paths):
        layout = Layout(declared, declared=True)
    elif columns == "image" and pictures:
        layout = image_layout(folder, pictures, tables, wanted)
        named = any(split_of(stem_of(path), wanted) for path in tables)
        if not layout.classes and not layout.metadata and named:  # tables with paths of images in them
            layout = None
    if layout is None:
        layout = table_layout(folder, tables, wanted, subset)
    taken = {path for paths in layout.splits.values() for path in paths} | set(layout.metadata.values())
    said = {path for path, _ in layout.unused}
    for path in files:
        if path not in taken and path not in said:
            layout.unused.append((path, why_unused(path, layout)))
    layout.splits = {name: layout.splits[name] for name in (*wanted, *sorted(layout.splits)) if name in layout.splits}
    if layout.classes:
        check_classes(layout)
    layout.unused += [(path, "hidden") for path in hidden]
    return layout


def check_classes(layout: Layout) -> None:
    """Raise InputError where a folder of a class has files, and no image among them."""
    for split, root in layout.roots.items():
        classes = {layout.classes[path] for path in layout.splits[split]}
        for path, _ in layout.unused:
            if path.is_relative_to(root) and len(parts := path.relative_to(root).parts) > 1 and parts[0] not in classes:
                raise InputError(
                    f"data.name: the class '{parts[0]}' in {root} has no image that can be read, only files such as "
                    f"{path.name}: convert them to one of {', '.join(IMAGES)}, or move the folder elsewhere"
                )


def visible_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """List all files below a folder, sorted, and the hidden ones and folders; a folder that links to itself once."""
    files, hidden, seen = [], [], set[str]()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        hidden += [Path(here, name) for name in (*folders, *names) if is_hidden(name)]
        folders[:] = [name for name in folders if not is_hidden(name)]
        files += [Path(here, name) for name in names if not is_hidden(name)]
    return sorted(files), sorted(hidden)


def is_hidden(name: str) -> bool:
    """Say whether a name is one that systems and tools put beside data."""
    return name.startswith((".", "__MACOSX")) or name in ("Thumbs.db", "desktop.ini")


def why_unused(path: Path, layout: Layout) -> str:
    """Say why a file that no rule mentions is not used."""
    if layout.images:
        return "no image" if path.suffix.lower() not in IMAGES else "in no folder of a class"
    if not format_of(path):
        return "no data file"
    return "README.md names other files" if layout.declared else "it describes the data"
