"""Decide what the files of a folder are: which split each belongs to, of images which class, and what is not used.

Nothing is read here but names. Whatever is not used is listed with the reason.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from hellora.core.errors import InputError
from hellora.data.declared import declared_files
from hellora.data.file_names import DESCRIPTIONS, IMAGES, Layout, format_of, has_rows, split_of, stem_of
from hellora.data.image_layout import add_split, image_layout
from hellora.data.table_layout import name_of_split, table_layout

UNKNOWN = (".xlsx", ".xls", ".ods", ".arrow", ".feather", ".zip", ".7z", ".rar", ".tar", ".h5", ".avro", ".orc")


def layout_of(folder: Path, wanted: Sequence[str], columns: str, subset: str = "") -> Layout:
    """Decide what the files of a folder are; `wanted` are the names of splits, the training split's first.

    Raises:
        InputError: there are no data, or it cannot be told which file belongs to which split.
    """
    files, hidden = visible_files(folder)
    tables = [path for path in files if is_table(path, columns, wanted) and path.name.lower() not in DESCRIPTIONS]
    pictures = [path for path in files if path.suffix.lower() in IMAGES]
    layout = declared_layout(folder, subset, wanted, tables, columns)
    if layout is None and columns == "image" and pictures and not are_about_images(tables, wanted):
        layout = image_layout(folder, pictures, tables, wanted, subset)
        if not layout.classes and not layout.metadata and any(split_of(stem_of(path), wanted) for path in tables):
            layout = None  # tables with paths of images in them
    if layout is None:
        layout = table_layout(folder, tables, wanted, subset)
        check_formats(folder, files, layout, wanted)
    taken = {path for paths in layout.splits.values() for path in paths} | set(layout.metadata.values())
    said = {path for path, _ in layout.unused}
    layout.unused += [(path, why_unused(path, layout)) for path in files if path not in taken and path not in said]
    layout.splits = {name: layout.splits[name] for name in (*wanted, *sorted(layout.splits)) if name in layout.splits}
    check_classes(layout)
    layout.unused += [(path, "hidden") for path in hidden]
    return layout


def declared_layout(
    folder: Path, subset: str, wanted: Sequence[str], tables: Sequence[Path], columns: str
) -> Layout | None:
    """Return the layout that README.md declares; None where it declares none."""
    declared = declared_files(folder, subset, wanted)
    if not declared:
        return None
    paths = [path for found in declared.values() for path in found]
    layout = Layout(images=all(path.suffix.lower() in IMAGES for path in paths), declared=True)
    if not layout.images and (odd := next((path for path in paths if not has_rows(path, columns)), None)):
        raise InputError(f"data.name: README.md in {folder} declares {odd.name}, whose format is unknown: convert it")
    for split, found in declared.items():
        if layout.images:
            add_split(layout, split, Path(os.path.commonpath([path.parent for path in found])), found, tables)
        else:
            layout.splits[split] = found
    return layout


def is_table(path: Path, columns: str, wanted: Sequence[str]) -> bool:
    """Say whether a file has rows, by its name. A text is one where words are tagged, and it is named like a split."""
    sure = format_of(path) is not None or ".txt" not in path.name.lower()
    return has_rows(path, columns) and (sure or split_of(stem_of(path), wanted) is not None)


def are_about_images(tables: Sequence[Path], wanted: Sequence[str]) -> bool:
    """Say whether parquet files are named like splits: images are inside, and those beside are of a web page."""
    return any(format_of(path) == ".parquet" and split_of(stem_of(path), wanted) for path in tables)


def visible_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """List all files below a folder, sorted, and hidden files and folders. A folder that links to one above it is none.

    Raises:
        InputError: a folder cannot be read.
    """
    files: list[Path] = []
    hidden: list[Path] = []

    def walk(here: Path, above: frozenset[str]) -> None:
        real = os.path.realpath(here)
        if real in above:
            return
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"data.name: {here} cannot be read ({error.strerror}): change its permissions") from error
        for entry in entries:
            if is_hidden(entry.name):
                hidden.append(Path(entry.path))
            elif entry.is_dir():
                walk(Path(entry.path), above | {real})
            else:
                files.append(Path(entry.path))

    walk(folder, frozenset())
    return sorted(files), sorted(hidden)


def is_hidden(name: str) -> bool:
    """Say whether a name is one that systems and tools put beside data."""
    return name.startswith((".", "__MACOSX")) or name in ("Thumbs.db", "desktop.ini")


def why_unused(path: Path, layout: Layout) -> str:
    """Say why a file that no rule mentions is not used."""
    if layout.declared:
        return "README.md names other files"
    if layout.images:
        known = format_of(path) or path.suffix.lower() in IMAGES
        return "no image" if not known else "folders say the splits and classes"
    return "it describes the data" if format_of(path) else "no data file"


def check_formats(folder: Path, files: Sequence[Path], layout: Layout, wanted: Sequence[str]) -> None:
    """Raise InputError where a split is missing, and there is a file of its name in a format that is unknown."""
    named = {
        split
        for split, paths in layout.splits.items()
        for path in paths
        if split_of(name_of_split(path.relative_to(folder), wanted), wanted) == split
    }
    for path in files:
        split = split_of(path.name.split(".")[0], wanted)
        if path.suffix.lower() in UNKNOWN and split is not None and split not in named:
            raise InputError(
                f"data.name: {path.relative_to(folder)} has a format that is unknown: convert it to CSV, JSON lines or "
                f"parquet, or move it elsewhere"
            )


def check_classes(layout: Layout) -> None:
    """Raise InputError where a folder of a class has files, and no image among them."""
    for split, root in layout.roots.items():
        classes = {layout.classes[path] for path in layout.splits[split] if path in layout.classes}
        for path, _ in layout.unused:
            inside = path.relative_to(root).parts if path.is_relative_to(root) else ()
            if classes and len(inside) > 1 and inside[0] not in classes:
                raise InputError(
                    f"data.name: the class '{inside[0]}' in {root} has no image that can be read, only files such as "
                    f"{path.name}: convert them to one of {', '.join(IMAGES)}, or move the folder elsewhere"
                )
