"""Read the cells of a split, and check them row by row: texts, labels, filled templates, images."""

import string
from typing import Any

from datasets import ClassLabel, Dataset, Image

from hellora.core.errors import InputError
from hellora.data.labels import as_written
from hellora.data.loading import Split


def cells_of(split: Split, column: str, setting: str) -> list[Any]:
    """Return the cells of a column, which the setting `data.<setting>` names."""
    if column not in split.data.column_names:
        has = ", ".join(split.data.column_names)
        raise InputError(f"data.{setting}: {split.where} has no column '{column}' (it has {has}): set data.{setting}")
    cells: list[Any] = split.data[column][:]
    return cells


def texts(cells: list[Any], split: Split, setting: str) -> list[str]:
    """Return the same cells, if each is a text with something in it; else raise InputError."""
    for row, cell in enumerate(cells):
        if not isinstance(cell, str) or not cell.strip():
            if isinstance(cell, bytes):
                raise InputError(f"data.{setting}: row {row} of {split.where} is not UTF-8: save the file as UTF-8")
            what = "is empty" if cell is None or isinstance(cell, str) else f"is {cell!r}, not a text"
            raise InputError(f"data.{setting}: row {row} of {split.where} {what}: mend the data or name another column")
    return cells


def label_cells(split: Split, column: str) -> list[str]:
    """Return the label of every row as a text: of a whole number, a truth value or a text; of a ClassLabel the name."""
    cells = cells_of(split, column, "label")
    for row, cell in enumerate(cells):
        if not isinstance(cell, int | str) or cell == "":
            what = "no label" if cell is None or cell == "" else f"the label {cell!r}, not a whole number or a text"
            raise InputError(f"data.label: row {row} of {split.where} has {what}: mend the data or name another column")
    return named(cells, split.data.features[column])


def named(cells: list[Any], feature: Any) -> list[Any]:
    """Return labels as texts; of a ClassLabel, the names of their classes. What is no label stays as it is."""
    if not isinstance(feature, ClassLabel):
        return [as_written(cell) if isinstance(cell, int) else cell for cell in cells]
    return [cell if cell is None or cell < 0 else feature.names[cell] for cell in cells]


def filled(template: str, split: Split, setting: str) -> list[str]:
    """Fill the template with each row's cells in place of `{column}`; an empty cell gives an empty text."""
    try:
        pieces = [(text, column, extra or how) for text, column, extra, how in string.Formatter().parse(template)]
    except ValueError as error:
        raise InputError(f"data.{setting}: '{template}' is not a template ({error}): write {{{{ for a brace") from error
    columns = [column for _, column, _ in pieces if column is not None]
    if not columns or any(extra for _, _, extra in pieces):
        raise InputError(f"data.{setting}: '{template}' is not a text with plain {{column}} in it: correct it")
    cells = {column: cells_of(split, column, setting) for column in columns}
    for column, found in cells.items():
        for row, cell in enumerate(found):
            if not isinstance(cell, str | int | float | None):
                raise InputError(
                    f"data.{setting}: row {row} of column '{column}' of {split.where} is a {type(cell).__name__}, "
                    f"not a text or a number: mend the data or name another column"
                )

    def piece(row: int, column: str | None) -> str:
        return "" if column is None or cells[column][row] is None else as_written(cells[column][row])

    return ["".join(text + piece(row, column) for text, column, _ in pieces) for row in range(len(split.data))]


def images(split: Split, column: str) -> Dataset:
    """Return the one column `image`, decoded when read; the source may hold encoded bytes, paths or images."""
    if column not in split.data.column_names:
        cells_of(split, column, "image")
    data = split.data.select_columns([column]).rename_columns({column: "image"})
    if missing := data.data.column("image").null_count:
        raise InputError(f"data.image: {missing} rows of {split.where} have no image: mend the data")
    try:
        data = data.cast_column("image", Image())
        data[0]["image"]  # the first one shows whether these are images at all; the others are decoded when read
    except (TypeError, ValueError, NotImplementedError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"data.image: column '{column}' of {split.where} does not hold images ({reason}): set data.image"
        ) from error
    return data
