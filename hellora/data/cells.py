"""Read the cells of a split, and check them row by row: texts, labels, filled templates, images.

A row that cannot be used (nothing in its text, no label) is a fault, which the caller counts; a column of another kind
than is needed is an error.
"""

import string
from collections.abc import Container, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, Image, Value

from hellora.core.errors import InputError, one_line
from hellora.data.images import unreadable
from hellora.data.labels import as_written
from hellora.data.loading import Split

Faults = dict[int, str]  # why a row cannot be used
NO_LABEL = (None, "", "-1")  # how data sets write that there is none, where all of a column is so


def cells_of(split: Split, column: str, setting: str) -> list[Any]:
    """Return the cells of a column, which the setting `data.<setting>` names."""
    if column not in split.data.column_names:
        has = ", ".join(split.data.column_names)
        raise InputError(f"data.{setting}: {split.where} has no column '{column}' (it has {has}): set data.{setting}")
    cells: list[Any] = split.data[column][:]
    return cells


def texts(cells: list[Any], split: Split, setting: str, faults: Faults) -> list[str]:
    """Return the same cells; one without a text in it is a fault, one of another kind an error."""
    for row, cell in enumerate(cells):
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            faults.setdefault(row, f"its {setting} is empty")
        elif not isinstance(cell, str):
            what = "bytes" if isinstance(cell, bytes) else f"{cell!r}"[:80]
            raise InputError(
                f"data.{setting}: {split.place(row)} is {what}, not a text: mend the data or name another column"
            )
    return [cell or "" for cell in cells]


def label_cells(split: Split, column: str) -> list[str | None]:
    """Return the label of every row as a text: of a whole number, a truth value or a text; of a ClassLabel the name.

    None where a row has none.
    """
    cells = cells_of(split, column, "label")
    for row, cell in enumerate(cells):
        if cell is not None and not isinstance(cell, int | str):
            what = f"the label {cell!r}, not a whole number or a text"
            raise InputError(f"data.label: {split.place(row)} has {what}: mend the data or name another column")
    feature = split.data.features[column]
    if isinstance(feature, ClassLabel) and (
        out := [cell for cell in cells if cell is not None and cell >= len(feature.names)]
    ):
        raise InputError(
            f"data.label: {split.where} has the class number {out[0]}, and names {len(feature.names)} classes: mend it"
        )
    return [label if label is not None and label.strip() else None for label in named(cells, feature)]


def named(cells: list[Any], feature: Any) -> list[Any]:
    """Return labels as texts; of a ClassLabel, the names of their classes. What is no label stays as it is."""
    if not isinstance(feature, ClassLabel):
        return [as_written(cell) if isinstance(cell, int) else cell for cell in cells]
    known = range(len(feature.names))
    return [feature.names[cell] if cell in known else None for cell in cells]


def is_unlabelled(split: Split, column: str, classes: Container[str] = ()) -> bool:
    """Say whether no row has a label: each is empty, or -1, which GLUE writes where the labels are secret.

    -1 is a label where it is one of the `classes`.
    """
    none = NO_LABEL if "-1" not in classes else NO_LABEL[:2]
    return column in split.data.column_names and all(cell in none for cell in label_cells(split, column))


def column_without_cells(split: Split, columns: Sequence[str]) -> str | None:
    """Name the first of some columns that is not there, or has nothing in any row: each is empty, or -1."""
    for column in columns:
        cells = split.data[column] if column in split.data.column_names else ()
        if all(cell in (*NO_LABEL, "-1.0", -1) or cell != cell for cell in cells):
            return column
    return None


def filled(template: str, split: Split, setting: str) -> list[str]:
    """Fill the template with each row's cells in place of `{column}`; an empty cell gives an empty text, and so does a
    row in which all of them are empty, whatever else the template says."""
    try:
        pieces = [(text, column, extra or how) for text, column, extra, how in string.Formatter().parse(template)]
    except ValueError as error:
        raise InputError(f"data.{setting}: '{template}' is not a template ({error}): write {{{{ for a brace") from error
    columns = [column for _, column, _ in pieces if column is not None]
    if not columns or any(extra for _, _, extra in pieces):
        raise InputError(f"data.{setting}: '{template}' is not a text with plain {{column}} in it: correct it")
    cells = {
        column: named(cells_of(split, column, setting), split.data.features[column])
        if isinstance(split.data.features.get(column), ClassLabel)
        else cells_of(split, column, setting)
        for column in columns
    }
    for column, found in cells.items():
        for row, cell in enumerate(found):
            if isinstance(cell, float):  # a parquet file does not say how it was written: 7 may have become 7.0
                raise InputError(
                    f"data.{setting}: column '{column}' of {split.where} holds numbers with a fraction, such as "
                    f"{cell!r}: write numbers as texts"
                )
            if not isinstance(cell, str | int | None):
                raise InputError(
                    f"data.{setting}: column '{column}', {split.place(row)}, is a {type(cell).__name__}, "
                    f"not a text or a number: mend the data or name another column"
                )

    def piece(row: int, column: str | None) -> str:
        return "" if column is None or cells[column][row] is None else as_written(cells[column][row])

    def fill(row: int) -> str:
        says = any(piece(row, column).strip() for column in columns)
        return "".join(text + piece(row, column) for text, column, _ in pieces) if says else ""

    return [fill(row) for row in range(len(split.data))]


def below_their_tables(paths: Sequence[str | None], split: Split) -> list[str | None]:
    """Return paths that count from the folder of the table that names them; absolute ones and addresses stay."""
    folders = [part.folder for part in split.parts for _ in range(part.rows)] or [None] * len(paths)
    return [
        str(folder / path) if folder and path and "://" not in path else path
        for path, folder in zip(paths, folders, strict=True)
    ]


def images(split: Split, column: str, faults: Faults) -> Dataset:
    """Return the one column `image`, decoded when read; the source may hold encoded bytes, paths or images.

    A path counts from the folder of the table that names it. An image that cannot be read is a fault, unless none can,
    which is an error.
    """
    if column not in split.data.column_names:
        cells_of(split, column, "image")
    data = split.data.select_columns([column]).rename_columns({column: "image"})
    if data.features["image"] == Value("string"):
        data = Dataset.from_dict({"image": below_their_tables(data["image"][:], split)}, features=data.features)
    try:
        data = data.cast_column("image", Image())
    except (TypeError, ValueError, NotImplementedError, OSError) as error:
        raise InputError(
            f"data.image: column '{column}' of {split.where} does not hold images ({one_line(error)[:200]}): "
            f"set data.image"
        ) from error
    found = unreadable(data)
    if len(found) == len(data):
        raise InputError(
            f"data.image: column '{column}' of {split.where} does not hold images ({split.place(0)}: {found[0]}): "
            f"set data.image, or mend the data"
        )
    for row, why in found.items():
        faults.setdefault(row, why)
    return data
