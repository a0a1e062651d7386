"""Load the splits of a source by its name (hub id, local file, local folder, the embedded corpus), just as they are."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow  # type: ignore[import-untyped]
from datasets import Dataset, DatasetDict
from pyarrow import csv

from hellora.core.errors import InputError
from hellora.data import stdlib_docs

# By suffix; a folder with several is read in this order of preference.
FORMATS = {".parquet": "parquet", ".jsonl": "json", ".csv": "csv", ".json": "json"}


@dataclass(frozen=True, eq=False)
class Split:
    """A split is as its source has it; `where` names it to a person."""

    data: Dataset
    where: str


def load_splits(name: str, subset: str, train: str, others: Sequence[str]) -> dict[str, Split]:
    """Load the splits of a source; `train` is always among them.

    In a folder of files, the files of a split are those whose names start like it; `others` are the splits to look for
    beside `train`. A source with one split only has it under the name `train`.
    """
    files = {} if name == "stdlib_docs" else _files(name, train, others)
    loaded = stdlib_docs.load() if name == "stdlib_docs" else _load(name, subset, files)
    splits = {}
    for key, data in loaded.items():
        split = str(key)
        where = f"{files[split][0].parent.name}/{files[split][0].name}" if files else f"split '{split}' of {name}"
        if not len(data):
            raise InputError(f"data.name: {where} has no rows: fill it or name other data")
        splits[split] = Split(data, where)
    if train not in splits and len(splits) > 1:
        raise InputError(f"data.train_split: {name} has no split '{train}' (it has {', '.join(splits)}): name one")
    return splits if train in splits else {train: next(iter(splits.values()))}


def _files(name: str, train: str, others: Sequence[str]) -> dict[str, list[Path]]:
    """Find the local data files of each split; {} for a hub id or for a folder without data files (images by class)."""
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix not in FORMATS:
            raise InputError(f"data.name: {name} does not end in {', '.join(FORMATS)}: convert it or name other data")
        return {train: [path.absolute()]}
    if not path.is_dir():
        if path.suffix in FORMATS or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise InputError(f"data.name: there is no file or folder {name}: correct the path")
        return {}
    folder = path.absolute()
    by_format = [sorted(p for p in folder.glob(f"*{suffix}") if p.is_file()) for suffix in FORMATS]
    for found in by_format:
        splits = {split: [p for p in found if p.stem.startswith(split)] for split in (train, *others)}
        if splits[train]:
            return _without_overlap({split: paths for split, paths in splits.items() if paths})
    for found in by_format:
        if len(found) == 1:
            return {train: found}
    if several := [p.name for found in by_format for p in found]:
        raise InputError(
            f"data.train_split: no file in {name} starts with '{train}' (it has {', '.join(several)}): set "
            f"data.train_split and data.test_split to how the names start, or data.name to one of the files"
        )
    return {}


def _without_overlap(files: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Return the same files, if none is in two splits; else raise InputError."""
    owner: dict[Path, str] = {}
    for split, paths in files.items():
        for path in paths:
            if owner.setdefault(path, split) != split:
                raise InputError(
                    f"data.train_split: {path.name} starts with both '{owner[path]}' and '{split}': "
                    f"give more of the name to tell the splits apart"
                )
    return files


def _load(name: str, subset: str, files: Mapping[str, Sequence[Path]]) -> DatasetDict:
    """Let `datasets` load local files, a folder of images by class, or a hub id."""
    folder = Path(name).expanduser()
    try:
        if files:
            kind = FORMATS[next(iter(files.values()))[0].suffix]
            if kind == "csv":
                return DatasetDict({split: _read_csv(paths) for split, paths in files.items()})
            data_files = {split: [str(path) for path in paths] for split, paths in files.items()}
            with _no_progress():
                return datasets.load_dataset(kind, data_files=data_files)
        if folder.is_dir():
            with _no_progress():
                return datasets.load_dataset(str(folder))
        return datasets.load_dataset(name, subset or None)
    except Exception as error:  # the loader and the libraries under it raise almost anything
        reason = " ".join((str(error.__cause__ or "") or str(error)).split())[:300]
        if files:
            why = "is empty, damaged, or not in the format that it is named for"
        elif folder.is_dir():
            why = "holds neither data files nor one folder of images per class"
        else:
            why = "is no file or folder here, and cannot be had from the hub"
        raise InputError(f"data.name: {name} {why} ({reason})") from error


def _read_csv(paths: Sequence[Path]) -> Dataset:
    """Read the rows of all files, their columns matched by name; what a file has no column for is missing.

    Every cell is the text that it is, also `007`, `NA` and the empty one. Cells that are not UTF-8 stay bytes.
    """
    return Dataset(pyarrow.concat_tables(map(_csv_table, paths), promote_options="permissive"))


def _csv_table(path: Path) -> Any:
    """Read the columns of one file."""
    parse = csv.ParseOptions(newlines_in_values=True)
    with csv.open_csv(path, parse_options=parse) as opened:
        names = opened.schema.names
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two columns are named '{twice[0]}'")
    as_bytes = csv.ConvertOptions(column_types=dict.fromkeys(names, pyarrow.binary()))
    table = csv.read_csv(path, parse_options=parse, convert_options=as_bytes)
    return pyarrow.table([_text(column) for column in table.columns], names=names)


def _text(column: Any) -> Any:
    """Return a column of bytes as text, if it is UTF-8; else as it is."""
    try:
        return column.cast(pyarrow.string())
    except pyarrow.ArrowInvalid:
        return column


@contextmanager
def _no_progress() -> Iterator[None]:
    """Switch progress bars off while this lasts: reading what is already here takes a moment."""
    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()
