"""Read data files row by row; every value is the text that the file has.

A cell of CSV `007`, a JSON number `1.10`, a date: none is guessed to be anything else. JSON's `null`, and NaN, which is
how pandas writes a gap, are missing values. Parquet has types of its own, which are kept.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow  # type: ignore[import-untyped]
from datasets import Dataset
from pyarrow import parquet

from hellora.data.conll import read_columns
from hellora.data.file_names import DELIMITERS, compression_of, format_of, is_tagged

WRAPPERS = ("data", "rows", "examples", "records", "instances", "items")  # names of a list of rows inside an object
LONGEST_CELL = 2**31 - 1  # the csv module refuses cells above 128 KiB unless it is told
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@dataclass(frozen=True, eq=False)
class Table:
    """A table is a file's rows; `lines` is where in the file each begins, from 1, None where files have no lines."""

    rows: Dataset
    lines: Sequence[int] | None = None
    note: str = ""  # what a person should know of how it was read


def read_table(path: Path) -> Table:
    """Read a data file of any format.

    Raises:
        ValueError: the file is not what its name says; almost anything else: it is damaged.
    """
    kind = format_of(path)
    if kind == ".parquet":
        return Table(read_parquet(path))
    with opened(path) as file:
        if is_tagged(path):
            return Table(*read_columns(whole_text(file)))
        if kind in DELIMITERS:
            return csv_table(file, DELIMITERS[kind] or separator(file))
        return json_table(file, lines=kind == ".jsonl")


def read_parquet(path: Path) -> Dataset:
    """Read a parquet file, which never comes from a cache: a file that was changed is read anew."""
    if not compression_of(path):
        return Dataset(parquet.read_table(str(path), memory_map=True, partitioning=None))
    with binary(path) as file:
        return Dataset(parquet.read_table(io.BytesIO(file.read())))


@contextmanager
def binary(path: Path) -> Iterator[Any]:
    """Open a file for reading bytes, decompressed."""
    suffix = compression_of(path)
    if suffix == ".zst":
        with pyarrow.input_stream(str(path), compression="zstd") as file:
            yield io.BytesIO(file.read())
    else:
        with OPENERS.get(suffix, open)(path, "rb") as file:
            yield file


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """Open a file for reading UTF-8 text, decompressed; a byte order mark is left out."""
    with binary(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        yield text


def whole_text(file: TextIO) -> str:
    """Read all of a file."""
    try:
        return file.read()
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8: save the file as UTF-8") from error


# ---------------------------------------------------------------------------------------------------- CSV


def csv_table(file: TextIO, delimiter: str = ",") -> Table:
    """Read values between commas (RFC 4180), semicolons or tabs, with a heading row. A mark that closes inside a
    cell is an error."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        return csv_rows(file, delimiter)
    finally:
        csv.field_size_limit(before)


def separator(file: TextIO) -> str:
    """Say what parts the cells of the heading row: a comma, where it does; spreadsheets also write semicolons, or
    tabs."""
    try:
        heading = next((line for line in file if line.strip()), "")
    except UnicodeDecodeError:  # which is said, with its line, when the rows are read
        heading = ""
    file.seek(0)
    return next((each for each in ",;\t" if len(next(csv.reader([heading], delimiter=each), [])) > 1), ",")


def csv_rows(file: TextIO, delimiter: str) -> Table:
    """Read the rows of a CSV file, each with the line in which it begins."""
    reader = csv.reader(file, strict=True, delimiter=delimiter)
    rows: list[list[str]] = []
    lines, spanning, begins = list[int](), list[tuple[int, int]](), 1
    try:
        names = next((row for row in reader if row), None)
        if names is None:
            raise ValueError("there is no heading row")
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two columns are named '{twice[0]}'")
        begins = reader.line_num + 1
        for row in reader:
            row = row or [""] * (len(names) == 1)  # an empty line is an empty cell where there is one column
            if row and len(row) != len(names):
                marks = " (put cells with separators in them in quotation marks)" * (len(row) > len(names))
                raise ValueError(f"line {begins}: Expected {len(names)} columns, got {len(row)}{marks}")
            if row:
                rows.append(row)
                lines.append(begins)
                if reader.line_num > begins and len(lines):
                    spanning.append((begins, reader.line_num))
            begins = reader.line_num + 1
    except csv.Error as error:
        last = f" to {reader.line_num}" if reader.line_num > begins else ""
        raise ValueError(
            f"line {begins}{last}: a quotation mark closes in the middle of a cell, or none closes it: put the cell in "
            f"marks, and double those inside"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"line {begins} or below is not UTF-8: save the file as UTF-8") from error
    columns = [pyarrow.array(cells, pyarrow.string()) for cells in zip(*rows, strict=True)] if rows else []
    empty = pyarrow.schema([(name, pyarrow.string()) for name in names]).empty_table()
    table = pyarrow.table(columns, names=names) if rows else empty
    between = "cells between semicolons" if delimiter == ";" else ""
    return Table(Dataset(table), lines, ", ".join(filter(None, (between, spanning_note(spanning)))))


def spanning_note(spanning: Sequence[tuple[int, int]]) -> str:
    """Say how many rows go over several lines: one that should not has a mark too many."""
    if not spanning:
        return ""
    first, last = spanning[0]
    one = len(spanning) == 1
    return f"{len(spanning)} row{'' if one else 's'} over several lines, the first from line {first} to {last}"


# ---------------------------------------------------------------------------------------------------- JSON


def json_table(file: TextIO, lines: bool) -> Table:
    """Read JSON lines, or a list of objects, or one of columns; also under one name, such as {"data": […]}."""
    numbers, objects = json_objects(whole_text(file), lines)
    names = list(dict.fromkeys(name for each in objects for name in each))
    columns = []
    for name in names:
        cells = [each.get(name) for each in objects]
        try:
            columns.append(pyarrow.array(cells))
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            if all(cell is None or isinstance(cell, list | dict) for cell in cells):  # such as texts and lists of parts
                written = [None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in cells]
                columns.append(pyarrow.array(written, pyarrow.string()))
                continue
            raise ValueError(f"'{name}' is now a text, now something else: {one_kind(cells, numbers)}") from error
        except UnicodeEncodeError as error:
            raise ValueError(f"'{name}' has half of a character in it, such as \\ud83d") from error
    return Table(Dataset(pyarrow.table(columns, names=names)), numbers)


def one_kind(cells: Sequence[Any], numbers: Sequence[int]) -> str:
    """Say where a column changes its kind."""
    there = [(type(cell).__name__, number) for cell, number in zip(cells, numbers, strict=True) if cell is not None]
    other = next((number for kind, number in there if kind != there[0][0]), there[-1][1])
    return f"compare {there[0][1]} and {other}"


def json_objects(text: str, lines: bool) -> tuple[list[int], list[dict[str, Any]]]:
    """Return the objects of a file, and where each is: its line, or in a list its place from 1."""
    if not lines or text.lstrip().startswith("["):
        try:
            found = listed(decode(text))
            return list(range(1, len(found) + 1)), found
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):  # that is JSON lines under another name
                raise ValueError(f"line {error.lineno}: {error.msg}") from error
    numbers, objects = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = decode(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {getattr(error, 'msg', error)}") from error
        if not isinstance(value, dict):
            raise ValueError(f"line {number} is no object {{…}}")
        numbers.append(number)
        objects.append(value)
    if not objects:
        raise ValueError("there is nothing in it")
    return numbers, objects


def listed(value: Any) -> list[dict[str, Any]]:
    """Return the objects that a JSON value holds."""
    if isinstance(value, dict):
        lists = {name: each for name, each in value.items() if isinstance(each, list)}
        wrapped = next((each for name, each in lists.items() if name in WRAPPERS or len(value) == 1), None)
        if wrapped and all(isinstance(each, dict) for each in wrapped):
            return listed(wrapped)
        if value and len(lists) == len(value) and len({len(each) for each in lists.values()}) == 1:
            return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
        return [value]
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ValueError("it is no list of objects [{…}, …]")
    return value


def decode(text: str) -> Any:
    """Decode JSON; numbers and truth values become the texts that they are written as."""
    return json.loads(text, parse_int=str, parse_float=str, parse_constant=lambda _: None, object_pairs_hook=paired)


def paired(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs, whose names differ."""
    found = {name: as_text(value) for name, value in pairs}
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' is there twice")
    return found


def as_text(value: Any) -> Any:
    """Write truth values as JSON has them, also in lists."""
    if isinstance(value, bool):
        return str(value).lower()
    return [as_text(each) for each in value] if isinstance(value, list) else value
