"""Dirichlet label skew (Yurochkin et al., arXiv 1905.12022; Hsu et al., arXiv 1909.06335); flwr-datasets draws it.

p_c ~ Dir(α, …, α) over the clients, for every class c; client i receives the share p_ci of the examples of class c
"""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hellora.core.errors import InputError
from hellora.core.seeds import seed_for
from hellora.data.partitioning import Indices, Partitioner, class_of_row

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Dirichlet(Partitioner):
    """Gives clients few classes and unequal sizes where `alpha` is small; a large one comes close to iid."""

    alpha: float = 0.3  # the smaller, the more do clients' classes differ
    min_examples: int = 10  # per client; drawn anew, up to ten times, until every client has that many

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha must be greater than 0, not {self.alpha}")
        if self.min_examples < 1:
            raise ValueError(f"min_examples must be at least 1, not {self.min_examples}")

    def partition(self, data: "Dataset", clients: int, seed: int) -> list[Indices]:
        from datasets import Dataset
        from flwr_datasets.partitioner import DirichletPartitioner  # slow to import

        classes = class_of_row(data)
        if clients * self.min_examples > len(data):
            raise InputError(
                f"data.min_examples: {clients} clients cannot each have {self.min_examples} of {len(data)} training "
                f"examples: lower data.clients or data.min_examples, or set data.partitioner = 'iid'"
            )
        parts = DirichletPartitioner(
            num_partitions=clients,
            partition_by="label",
            alpha=float(self.alpha),
            min_partition_size=self.min_examples,
            shuffle=False,
            seed=seed_for(seed, "dirichlet"),
        )
        parts.dataset = Dataset.from_dict({"row": np.arange(len(data)), "label": classes})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one per draw that left a client too small
            try:
                rows = [np.asarray(parts.load_partition(client)["row"][:]) for client in range(clients)]
            except ValueError as error:
                raise InputError(
                    f"data.alpha: no draw gave each of {clients} clients {self.min_examples} of {len(data)} training "
                    f"examples at alpha = {self.alpha}: lower data.min_examples or data.clients, raise data.alpha, or "
                    f"set data.partitioner = 'iid'"
                ) from error
        return [np.sort(part) for part in rows]
