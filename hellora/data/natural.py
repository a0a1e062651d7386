"""Natural clients, each a value of a column, are known before anything is held out, and none loses its last row to it.

So how many there are, and who is who, does not depend on the seed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hellora.core.errors import InputError
from hellora.core.seeds import rng_for
from hellora.data.labels import as_written, in_order

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Groups:
    """Groups are the rows with one value of a column."""

    column: str

    def of_rows(self, data: "Dataset") -> npt.NDArray[np.int64]:
        """Return the group of every row, (rows,), in the order of the values."""
        return values_of(data, self.column)[1]


def values_of(data: "Dataset", column: str) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the values of a column in order, and which of them each row has, (rows,).

    Raises:
        InputError: there is no such column, or a cell of it is no text and no whole number.
    """
    if column not in data.column_names:
        has = ", ".join(data.column_names)
        raise InputError(f"data.column: the data has no column '{column}' (it has {has}): set data.column")
    cells = data[column][:]
    for row, cell in enumerate(cells):
        if not isinstance(cell, str | int):
            raise InputError(
                f"data.column: row {row} of '{column}' holds {cell!r}, not a text or a whole number: "
                f"mend the data or name another column"
            )
    texts = [as_written(cell) for cell in cells]
    values = in_order(set(texts))
    place = {value: index for index, value in enumerate(values)}
    return values, np.array([place[text] for text in texts], dtype=np.int64)


def largest(data: "Dataset", column: str, most: int | None) -> "tuple[Dataset, str]":
    """Return the rows of the `most` clients that have the most, and a note on the others; all where it is None."""
    values, groups = values_of(data, column)
    if most is None or most >= len(values):
        return data, ""
    sizes = np.bincount(groups, minlength=len(values))
    kept = np.argsort(-sizes, kind="stable")[:most]
    rows = np.flatnonzero(np.isin(groups, kept))
    note = (
        f"data.clients = {most}, so the {len(values) - most} of {len(values)} values of '{column}' with the fewest "
        f"rows take no part ({len(data) - len(rows)} rows)"
    )
    return data.select(rows), note


def cut_within(
    data: "Dataset", count: int, seed: int, purpose: str, groups: Groups | None = None
) -> "tuple[Dataset, Dataset]":
    """Return the rest, and `count` rows (or all there are) drawn by seed, each in the order of the source.

    With `groups`, every group keeps one row at least, so there may be fewer than `count`.
    """
    order = rng_for(seed, "data", purpose).permutation(len(data))
    if groups is None:
        return data.select(np.sort(order[count:])), data.select(np.sort(order[:count]))
    of_rows = groups.of_rows(data)
    left = np.bincount(of_rows)
    taken = np.zeros(len(data), dtype=bool)
    for row in order:
        if taken.sum() == count:
            break
        if left[of_rows[row]] > 1:
            taken[row], left[of_rows[row]] = True, left[of_rows[row]] - 1
    return data.select(np.flatnonzero(~taken)), data.select(np.flatnonzero(taken))


def kept_within(data: "Dataset", count: int, seed: int, purpose: str, groups: Groups | None) -> "Dataset":
    """Return `count` rows (or all there are) drawn by seed; with `groups`, of every group one at least."""
    if groups is None:
        return cut_within(data, count, seed, purpose)[1]
    rest, _ = cut_within(data, max(0, len(data) - count), seed, purpose, groups)
    if len(rest) > max(count, 0) and len(data) > count:
        raise InputError(
            f"data.max_examples = {count} are fewer than the {len(rest)} natural clients, each of which keeps one: "
            f"raise it, or set data.clients"
        )
    return rest
