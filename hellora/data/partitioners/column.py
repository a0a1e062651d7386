"""Natural clients (LEAF, arXiv 1812.01097): each holds one value of a column, such as a task, a category, an author."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hellora.core.errors import InputError
from hellora.data.natural import values_of
from hellora.data.partitioning import Indices, Partitioner

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Column(Partitioner):
    """Gives client i the rows with the i-th value of `column`, in sorted order of value."""

    column: str  # each of its values is a client

    def partition(self, data: "Dataset", clients: int, seed: int) -> list[Indices]:
        values, client_of = values_of(data, self.column)
        if clients != len(values):
            raise InputError(
                f"data.clients: column '{self.column}' has {len(values)} values, one client each, not {clients}: "
                f"set data.clients = {len(values)}"
            )
        return [np.flatnonzero(client_of == client) for client in range(clients)]
