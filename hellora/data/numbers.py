"""Read what regression learns: a column of numbers, or several (`data.labels`).

A table of texts has a number as a person writes it, "3.5", "-2", "1e-3", " 4 ". A cell that is empty, nan, larger than
1e30, or no number, such as "n/a" or "3,5", is that of a row that cannot be used.
"""

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from datasets import Value

from hellora.core.errors import InputError
from hellora.data.cells import Faults, cells_of, named
from hellora.data.loading import Split
from hellora.data.settings import DataSettings

NUMBERS = [Value("float64")]  # in the column `targets`
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
LARGEST = 1e30  # in size; the squares of larger ones do not fit into what networks calculate with
UNKNOWN = math.nan  # the number of a public example without one
FRACTIONS = 10  # different numbers from which labels with fractions are amounts, and no classes
NO_NUMBER = 0.05  # the share of amounts that may be no number, as of other rows that cannot be used
VALUE = "value"  # the name of a number that is alone, whatever its column is called


def names_of(settings: DataSettings) -> tuple[str, ...]:
    """Return the names of the numbers."""
    return settings.labels or (VALUE,)


def check_names(settings: DataSettings, names: tuple[str, ...]) -> None:
    """Raise InputError where the settings read other numbers than those that are learned, or in another order."""
    if (own := names_of(settings)) != names:
        raise InputError(
            f"data.labels: the numbers are {', '.join(names)}, and these settings read {', '.join(own)}: name the "
            f"columns alike, in this order"
        )


def read_numbers(split: Split, settings: DataSettings, faults: Faults, may_lack_labels: bool) -> list[list[float]]:
    """Read the numbers of each row. A row that lacks one is a fault or, with `may_lack_labels`, has UNKNOWN there."""
    found: list[list[float]] = [[] for _ in range(len(split.data))]
    setting = "labels" if settings.labels else "label"
    for column in settings.target_columns:
        if may_lack_labels and column not in split.data.column_names:
            cells: list[Any] = [None] * len(found)
        else:
            cells = named(cells_of(split, column, setting), split.data.features[column])
        for row, cell in enumerate(cells):
            if isinstance(cell, bool | list | dict | bytes):
                raise InputError(
                    f"data.{setting}: column '{column}', {split.place(row)}, is a {type(cell).__name__}, not a number: "
                    f"mend the data or name another column"
                )
            number = as_number(cell)
            if number is None and not may_lack_labels:
                faults.setdefault(row, why_none(cell, column))
            found[row].append(UNKNOWN if number is None else number)
    return found


def as_number(cell: Any) -> float | None:
    """Return the number that a cell is, or has written; None where it is none, not finite, or too large."""
    if isinstance(cell, str):
        cell = float(cell) if NUMBER.fullmatch(cell.strip()) else None
    number = float(cell) if isinstance(cell, int | float | Decimal) else math.nan
    return number if abs(number) <= LARGEST else None


def why_none(cell: Any, column: str) -> str:
    """Say why a cell has no number."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return f"its '{column}' is empty"
    return f"its '{column}' is '{cell}', no number up to {LARGEST:.0e} (they are written as 3.5 or 1e-3)"


def are_amounts(labels: Sequence[Any]) -> bool:
    """Tell whether labels are numbers, but for a few, some with a fraction, and many different ones."""
    numbers = [as_number(label) for label in labels if not isinstance(label, bool)]
    found = {number for number in numbers if number is not None}
    few = numbers.count(None) <= NO_NUMBER * len(labels)
    return few and len(found) >= FRACTIONS and not all(number.is_integer() for number in found)
