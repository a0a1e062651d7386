"""Pack texts of unequal lengths into rows of one length, so that next to nothing of a batch is padding."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hellora.core.seeds import rng_for

Indices = npt.NDArray[np.int64]


def packed(lengths: Sequence[int] | Indices, limit: int, seed: int) -> list[Indices]:
    """Deal texts out to rows of up to `limit` tokens: best fit, the longest first; return the texts of each row.

    Which of several texts of a length comes first is drawn. So the seed decides what lies beside what, but not how many
    rows there are.
    """
    shuffled = rng_for(seed, "packing").permutation(len(lengths))
    sizes = np.asarray(lengths, dtype=np.int64)
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens, row), sorted
    for text in shuffled[np.argsort(-sizes[shuffled], kind="stable")].tolist():
        size = int(sizes[text])
        place = bisect_left(free, (size, -1))
        room, row = free.pop(place) if place < len(free) else (limit, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(text)
        insort(free, (room - size, row))
    return [np.array(row, dtype=np.int64) for row in rows]


class PackedRows(Sequence[dict[str, Any]]):
    """Packed rows are put together from examples when they are read: columns one behind the other, and `lengths`."""

    def __init__(self, examples: Sequence[dict[str, Any]], members: Sequence[Indices]) -> None:
        self.examples, self.members = examples, members

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, row: Any) -> Any:
        texts = [self.examples[int(text)] for text in self.members[row]]
        joined = {name: [value for text in texts for value in text[name]] for name in texts[0]}
        return {**joined, "lengths": [len(text["input_ids"]) for text in texts]}
