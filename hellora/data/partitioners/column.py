"""Natural clients (LEAF, arXiv 1812.01097): each holds one value of a column, such as a task, a category, an author."""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from hellora.core.errors import InputError
from hellora.data.labels import as_written, in_order
from hellora.data.partitioning import Indices, Partitioner


@dataclass(frozen=True)
class Column(Partitioner):
    """Gives client i the rows with the i-th value of `column`, in sorted order of value."""

    column: str

    def partition(self, data: Dataset, clients: int, seed: int) -> list[Indices]:
        if self.column not in data.column_names:
            has = ", ".join(data.column_names)
            raise InputError(f"data.column: the data has no column '{self.column}' (it has {has}): set data.column")
        cells = data[self.column][:]
        for row, cell in enumerate(cells):
            if not isinstance(cell, str | int):
                raise InputError(
                    f"data.column: row {row} of '{self.column}' holds {cell!r}, not a text or a whole number: "
                    f"mend the data or name another column"
                )
        texts = [as_written(cell) for cell in cells]
        values = in_order(set(texts))
        place = {value: client for client, value in enumerate(values)}
        client_of = np.array([place[text] for text in texts])
        if clients != len(values):
            raise InputError(
                f"data.clients: column '{self.column}' has {len(values)} values, one client each, not {clients}: "
                f"set data.clients = {len(values)}"
            )
        return [np.flatnonzero(client_of == client) for client in range(clients)]
