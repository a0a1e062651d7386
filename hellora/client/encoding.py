"""Encode rows once, and keep them small: each list of whole numbers, such as token ids, in one flat array.

What is kept takes 1 to 4 bytes for each number of a row (a token of BERT: 2 for its id, 1 each for its type and its
mask) and 8 bytes a row for each column: about what the texts themselves take. Images are not kept: they are decoded
when their row is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from hellora.core.errors import InputError
from hellora.model.resident import BaseModel
from hellora.tasks import Encoded, Example, Task

AT_ONCE = 4096  # rows that are encoded together, before they are made small


@dataclass(frozen=True, eq=False)
class Ragged:
    """A ragged column has a list of whole numbers in each row: `values` has them end to end, those of row i from
    starts[i] to starts[i + 1]."""

    values: npt.NDArray[Any]  # of the smallest type that holds them
    starts: npt.NDArray[np.int64]  # (rows + 1,)

    def __getitem__(self, row: int) -> list[int]:
        found: list[int] = self.values[self.starts[row] : self.starts[row + 1]].tolist()
        return found


class Packed(Sequence[Example]):
    """Packed examples are those of the same columns, column by column; each is made again, equal, when it is read."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.length = len(examples)
        self.columns = {name: packed([example[name] for example in examples]) for name in examples[0]}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: Any) -> Any:
        return {name: column[row] for name, column in self.columns.items()}


class Joined(Sequence[Example]):
    """Joined examples are blocks of AT_ONCE examples each, the last of them of what is left, as one sequence."""

    def __init__(self, blocks: Sequence[Sequence[Example]]) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def __getitem__(self, row: Any) -> Any:
        return self.blocks[row // AT_ONCE][row % AT_ONCE]


def packed(column: list[Any]) -> Ragged | list[Any]:
    """Pack a column of lists of ints; any other column stays as it is."""
    if not all(type(value) is list for value in column):
        return column
    if set(map(type, chain.from_iterable(column))) != {int}:  # a bool, too, has another type
        return column
    values = np.array(list(chain.from_iterable(column)))
    if values.dtype != np.int64:  # too large for it
        return column
    small = np.result_type(np.min_scalar_type(values.min()), np.min_scalar_type(values.max()))
    starts = np.concatenate([[0], np.cumsum([len(value) for value in column])])
    return Ragged(values.astype(small), starts)


def encode_rows(kind: Task, base: BaseModel, rows: Any) -> Encoded:
    """Encode the rows of a `datasets.Dataset` to be kept.

    Raises:
        InputError: a row cannot be encoded; it is named.
    """
    if len(rows) <= AT_ONCE:
        return small(kind.encode(base, rows))
    blocks: list[Encoded] = []
    try:
        for start in range(0, len(rows), AT_ONCE):
            block = kind.encode(base, rows.select(range(start, min(start + AT_ONCE, len(rows)))))
            if not isinstance(block.examples, list):  # examples are made when they are read
                return kind.encode(base, rows)
            blocks.append(small(block))
    except InputError:
        kind.encode(base, rows)  # which names the row by its place among all
        raise
    return joined(blocks)


def small(encoded: Encoded) -> Encoded:
    """Pack examples that are all there and have the same columns."""
    examples = encoded.examples
    if not isinstance(examples, list) or not examples or any(each.keys() != examples[0].keys() for each in examples):
        return encoded
    return replace(encoded, examples=Packed(examples))


def joined(blocks: Sequence[Encoded]) -> Encoded:
    """Join blocks of AT_ONCE examples."""
    lengths = [block.lengths for block in blocks if block.lengths is not None]
    tokens = [block.tokens for block in blocks if block.tokens is not None]
    return Encoded(
        Joined([block.examples for block in blocks]),
        np.concatenate(lengths) if lengths else None,
        np.concatenate(tokens) if tokens else None,
        cut=sum(block.cut for block in blocks),
        limit=blocks[0].limit,
        cut_targets=sum(block.cut_targets for block in blocks),
        lost=sum(block.lost for block in blocks),
        missed=sum(block.missed for block in blocks),
        refused=tuple(why for block in blocks for why in block.refused),
    )
