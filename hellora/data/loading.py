"""Load the splits of a source by its name (hub id, local file, local folder, what is embedded), just as they are.

hellora decides what is a split, a class, a row (`layout`), and hands lists of files to the readers. Only a hub id goes
to `datasets.load_dataset` whole.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, concatenate_datasets

from hellora.core.errors import InputError, one_line
from hellora.data import stdlib_docs, stdlib_questions
from hellora.data.file_names import Layout, compression_of, folder_split, formats_read, has_rows, split_of, stem_of
from hellora.data.labels import as_written, in_order
from hellora.data.layout import layout_of
from hellora.data.tables import Table, read_table

EMBEDDED = {"stdlib_docs": stdlib_docs.load, "stdlib_questions": stdlib_questions.load}  # they need no download


@dataclass(frozen=True)
class Part:
    """A part of a split is what one file holds; `lines` is where in it each row begins, or None."""

    name: str
    rows: int
    lines: Sequence[int] | None = None
    folder: Path | None = None  # from which the paths count that a table names


@dataclass(frozen=True, eq=False)
class Split:
    """A split is as its source has it; `where` names it to a person."""

    data: Dataset
    where: str
    parts: Sequence[Part] = ()  # empty: rows are counted in the source

    def place(self, row: int) -> str:
        """Name the place of a row to a person: `train.csv, line 7`, an image's file, or `row 6 of train.parquet`."""
        if not self.parts:
            return f"row {row} of {self.where}"
        ends = [0]
        for part in self.parts:
            ends.append(ends[-1] + part.rows)
        index = bisect_right(ends, row) - 1
        part, inside = self.parts[index], row - ends[index]
        if part.lines is not None:
            return f"{part.name}, line {part.lines[inside]}"
        return f"row {inside} of {part.name}" if part.rows > 1 else part.name


@dataclass(frozen=True, eq=False)
class Source:
    """A source is its splits by name, and notes on what was read and what was not, each a line for a person."""

    splits: Mapping[str, Split]
    notes: tuple[str, ...] = ()


def load_splits(
    name: str | Mapping[str, Dataset], subset: str, train: str, others: Sequence[str], columns: str = "text"
) -> Source:
    """Load the splits of a source, or take those that are here; `train` is always among them, and of `others` those
    that there are.

    A source with one split only has it under the name `train`.

    Raises:
        InputError: there is no such source, it cannot be read, or it cannot be told what its splits are.
    """
    wanted = (train, *others)
    if not isinstance(name, str):
        source, name = whole(name, "the given tables", wanted), "the given tables"
    elif name in EMBEDDED:
        source = whole(EMBEDDED[name](), name, wanted)
    elif (path := Path(name).expanduser()).is_file():
        source = of_file(path, train, columns)
    else:
        is_folder = path.is_dir()
        source = (
            of_folder(path.absolute(), name, subset, wanted, columns) if is_folder else of_hub(name, subset, wanted)
        )
    for split in source.splits.values():
        if not len(split.data):
            raise InputError(f"data.name: {split.where} has no rows: fill it or name other data")
    if train in source.splits:
        return source
    only = next(iter(source.splits))
    if len(source.splits) > 1 or split_of(only, (train,)) is not None:
        has = ", ".join(source.splits)
        raise InputError(f"data.train_split: {name} has no split '{train}' (it has {has}): name one")
    return Source({train: source.splits[only]}, source.notes)


def of_hub(name: str, subset: str, wanted: Sequence[str]) -> Source:
    """Load a data set of the hub."""
    path = Path(name)
    a_file = has_rows(path, "tokens") or bool(compression_of(path))
    if a_file or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError(f"data.name: there is no file or folder {name}: correct the path")
    try:
        return whole(datasets.load_dataset(name, subset or None), name, wanted)
    except Exception as error:  # the loader and the libraries under it raise almost anything
        why = one_line(error.__cause__ or error)[:300]
        raise InputError(
            f"data.name: {name} is no file or folder here, and cannot be had from the hub ({why})"
        ) from error


def whole(loaded: Mapping[str, Dataset], name: str, wanted: Sequence[str]) -> Source:
    """Make a source of splits that have names already; a synonym of one that is wanted stands for it."""
    splits: dict[str, Split] = {}
    notes = []
    for key, data in loaded.items():
        known = str(key) if key in wanted else folder_split(str(key), wanted) or str(key)
        if known in splits or (known != key and known in loaded):
            known = str(key)
        splits[known] = Split(data, f"split '{key}' of {name}")
        if len(loaded) > 1 and known not in wanted:
            notes.append(f"not used: {splits[known].where} (its name is none that is looked for)")
        else:
            notes.append(f"read {rows_of(data)} of {splits[known].where}")
    return Source(splits, tuple(notes))


def of_file(path: Path, train: str, columns: str) -> Source:
    """Read one data file, which is the training split."""
    if not has_rows(path, columns):
        raise InputError(f"data.name: {path} does not end in {formats_read(columns)}: convert it or name other data")
    return from_tables({train: [path.absolute()]}, path.absolute().parent.parent)


def of_folder(folder: Path, name: str, subset: str, wanted: Sequence[str], columns: str) -> Source:
    """Read a folder: as `datasets` saved it, or files and images as `layout_of` says."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        try:
            saved = datasets.load_from_disk(str(folder))
        except Exception as error:
            raise InputError(
                f"data.name: {name} looks saved by datasets, and is damaged ({one_line(error)})"
            ) from error
        return whole(saved if isinstance(saved, DatasetDict) else DatasetDict({wanted[0]: saved}), name, wanted)
    layout = layout_of(folder, wanted, columns, subset)
    unused = unused_notes(layout, folder)
    if not layout.images:
        source = from_tables(layout.splits, folder.parent)
        return Source(source.splits, (*source.notes, *unused))
    splits = {split: images_of(layout, split, folder) for split in layout.splits}
    read = []
    for split, each in splits.items():
        label = each.data.features.get("label")
        classes = label.names if isinstance(label, ClassLabel) else []
        shown = f", of the classes {', '.join(classes[:10])}{' …' if classes[10:] else ''}" if classes else ""
        read.append(f"read {len(each.data)} images of {each.where} as '{split}'{shown}")
    return Source(splits, (*read, *unused))


# ---------------------------------------------------------------------------------------------------- tables


def from_tables(files: Mapping[str, Sequence[Path]], above: Path) -> Source:
    """Read the data files of each split; files are named by their path from `above`."""
    splits, notes = {}, list[str]()
    for split, paths in files.items():
        named = {path: str(path.relative_to(above)) for path in paths}
        tables = {path: read_named(path, named[path]) for path in paths}
        for path, other in same_twice(tables):
            notes.append(f"not used: {named[other]} (the same rows as {named[path]})")
            del tables[other]
        parts = [Part(named[path], len(table.rows), table.lines, path.parent) for path, table in tables.items()]
        for path, table in tables.items():
            note = f", {table.note}" if table.note else ""
            notes.append(f"read {rows_of(table.rows)} of {named[path]} as '{split}'{note}")
        where = parts[0].name + (f" and {len(parts) - 1} more" if len(parts) > 1 else "")
        splits[split] = Split(together([table.rows for table in tables.values()], where), where, parts)
    return Source(splits, tuple(notes))


def rows_of(data: Dataset) -> str:
    """Say how many rows there are."""
    return f"{len(data)} row{'s' * (len(data) != 1)}"


def read_named(path: Path, name: str) -> Table:
    """Read a data file, which an error calls `name`."""
    try:
        return read_table(path)
    except Exception as error:  # readers raise almost anything
        why = one_line(error.__cause__ or error if not isinstance(error, ValueError) else error)[:300]
        raise InputError(
            f"data.name: {name} is empty, damaged, or not in the format that it is named for ({why})"
        ) from error


def same_twice(tables: Mapping[Path, Table]) -> list[tuple[Path, Path]]:
    """Return pairs of files with one name in two formats or compressions, and the same rows: one is a copy."""
    found, first = [], dict[tuple[Path, str], Path]()
    for path in tables:
        kept = first.setdefault((path.parent, stem_of(path)), path)
        if kept != path and as_texts(tables[kept]) == as_texts(tables[path]):
            found.append((kept, path))
    return found


def as_texts(table: Table) -> list[dict[str, str]]:
    """Return the rows with every value written out, whatever types the format has."""
    return [{name: str(value) for name, value in row.items()} for row in table.rows]


def together(tables: Sequence[Dataset], where: str) -> Dataset:
    """Put tables below each other, their columns matched by name; what a table has no column for is missing."""
    if len(tables) == 1:
        return tables[0]
    try:
        return concatenate_datasets(list(tables))
    except Exception as error:
        raise InputError(
            f"data.name: the files {where} have columns of one name and two types ({one_line(error)[:200]}): make "
            f"them alike"
        ) from error


# ---------------------------------------------------------------------------------------------------- images


def images_of(layout: Layout, split: str, folder: Path) -> Split:
    """Return the images of a split, not decoded yet, with their class or what a table says of each."""
    paths = layout.splits[split]
    root = layout.roots[split]
    where = str(root.relative_to(folder.parent))
    cells: dict[str, list[Any]] = {"image": [{"path": str(path), "bytes": None} for path in paths]}
    features: dict[str, Any] = {"image": Image()}
    if any(path in layout.classes for path in paths):
        names = in_order({layout.classes[path] for path in paths})
        cells["label"] = [names.index(layout.classes[path]) for path in paths]
        features["label"] = ClassLabel(names=names)
    elif split in layout.metadata:
        table = layout.metadata[split]
        for name, told in metadata(table, [path.relative_to(table.parent).as_posix() for path in paths]).items():
            cells[name], features[name] = told, Value("string")
    data = Dataset.from_dict(cells, features=Features(features))
    return Split(data, where, [Part(str(path.relative_to(folder.parent)), 1) for path in paths])


def metadata(path: Path, files: Sequence[str]) -> dict[str, list[str | None]]:
    """Return what a table says of each file, by its column `file_name`; None for a file that it does not name."""
    rows = read_named(path, path.name).rows
    if "file_name" not in rows.column_names:
        raise InputError(f"data.name: {path.name} beside images has no column 'file_name': add it, or remove the file")
    names = [PurePosixPath(name).as_posix() for name in rows["file_name"][:]]
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise InputError(f"data.name: {path.name} names {twice} twice: leave one row")
    if gone := next((name for name in names if not (path.parent / name).is_file()), None):
        raise InputError(
            f"data.name: {path.name} names {gone}, and there is no such file: bring it, or leave out its row"
        )
    place = {name: row for row, name in enumerate(names)}
    told = {}
    for column in rows.column_names:
        if column not in ("file_name", "image"):
            cells = [written(cell, rows.features[column], path, column) for cell in rows[column][:]]
            told[column] = [None if file not in place else cells[place[file]] for file in files]
    return told


def written(cell: Any, feature: Any, path: Path, column: str) -> str | None:
    """Write a cell of a table as a text; None stays."""
    if isinstance(cell, float):
        raise InputError(f"data.name: column '{column}' of {path.name} holds {cell!r}: write numbers as texts")
    if cell is None:
        return None
    return str(feature.names[cell]) if isinstance(feature, ClassLabel) else as_written(cell)


# ---------------------------------------------------------------------------------------------------- what is said


def unused_notes(layout: Layout, folder: Path) -> list[str]:
    """Say which files are not used and why; many for one reason in one place are counted."""
    groups: dict[tuple[str, str], list[str]] = {}
    for path, why in layout.unused:
        relative = path.relative_to(folder)
        place = "/".join(relative.parts[:-1][:2]) or "."  # of images: the split and the class
        groups.setdefault((why, place), []).append(str(relative))
    notes = []
    for (why, place), names in groups.items():
        if len(names) <= 3:
            notes.append(f"not used: {', '.join(names)} ({why})")
        else:
            notes.append(f"not used: {len(names)} files in {place}, such as {names[0]} ({why})")
    return notes
