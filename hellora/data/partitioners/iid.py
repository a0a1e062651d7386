"""FedAvg's IID setting (McMahan et al., arXiv 1602.05629): flwr-datasets' IidPartitioner cuts equal random parts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hellora.core.seeds import rng_for
from hellora.data.partitioning import Indices, Partitioner

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Iid(Partitioner):
    """Shuffles the rows and deals them out; sizes differ by at most one."""

    def partition(self, data: "Dataset", clients: int, seed: int) -> list[Indices]:
        from datasets import Dataset
        from flwr_datasets.partitioner import IidPartitioner  # slow to import

        parts = IidPartitioner(num_partitions=clients)
        parts.dataset = Dataset.from_dict({"row": rng_for(seed, "iid").permutation(len(data))})
        return [np.sort(np.asarray(parts.load_partition(client)["row"][:])) for client in range(clients)]
