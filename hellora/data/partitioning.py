"""A partitioner says which client holds which examples. Each is one file of `partitioners/`."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hellora.core.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

Indices = npt.NDArray[np.int64]


class Partitioner(ABC):
    """A partitioner cuts the rows of a training split into one part per client."""

    @abstractmethod
    def partition(self, data: "Dataset", clients: int, seed: int) -> list[Indices]:
        """Return sorted row indices per client: disjoint, together every row, none empty.

        The result depends on the arguments only.
        """


def client_rows(partitioner: Partitioner, data: "Dataset", clients: int, seed: int) -> list[Indices]:
    """Return the parts that a partitioner makes, checked: it may be a user's own."""
    if clients > len(data):
        raise InputError(
            f"data.clients: {len(data)} training examples are too few for {clients} clients: lower it, and cohort"
        )
    parts = partitioner.partition(data, clients, seed)
    rows = np.sort(np.concatenate(parts)) if parts else np.array([], dtype=np.int64)
    if len(parts) != clients or not all(map(len, parts)) or not np.array_equal(rows, np.arange(len(data))):
        raise InputError(
            f"data.partitioner: {type(partitioner).__name__} returned {len(parts)} parts of {len(rows)} rows in all, "
            f"expected every one of {len(data)} rows once, in {clients} parts that are not empty"
        )
    return parts


def class_of_row(data: "Dataset") -> Indices:
    """Return the class of every row, (rows,), for the partitioners that go by class.

    Of numbers that is the tenth of all rows that the first of them is in; of labels the rarest that the row has, and
    one more for rows without any.
    """
    if "targets" in data.column_names:
        targets = np.asarray(data["targets"][:])  # (rows, numbers or labels)
        return tenth(targets[:, 0]) if targets.dtype.kind == "f" else rarest(targets)
    if "tags" in data.column_names:
        raise InputError(
            "data.partitioner: this one goes by the class of each example, and words have a tag each: set "
            "data.partitioner = 'iid', or 'column' with data.column"
        )
    if "label" not in data.column_names:
        raise InputError(
            "data.label: this partitioner goes by class, but the data has no label: set data.label, or "
            "data.partitioner = 'iid'"
        )
    return np.asarray(data["label"][:], dtype=np.int64)


def tenth(numbers: npt.NDArray[np.float64]) -> Indices:
    """Return in which tenth of all rows each is by its number, (rows,), from 0; equal numbers stay together."""
    return np.searchsorted(np.quantile(numbers, np.arange(1, 10) / 10), numbers, side="right")


def rarest(has: npt.NDArray[np.int64]) -> Indices:
    """Return which of the labels that each row has, (rows, labels), the fewest rows have; their number for none."""
    counts = np.where(has > 0, has.sum(0), len(has) + 1)
    found: Indices = np.where(has.any(1), counts.argmin(1), has.shape[1])
    return found
