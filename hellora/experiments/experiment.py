"""Define a checked experiment, and compare it with another."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import tomli_w

from hellora.client.own_metrics import Metric
from hellora.core.exchange import TrainSettings
from hellora.data.partitioning import Partitioner
from hellora.data.settings import DataSettings
from hellora.experiments.settings import (
    ComputeSettings,
    FleetSettings,
    PolicySettings,
    RunSettings,
    TrackingSettings,
    WireSettings,
)
from hellora.experiments.stopping import StopSettings
from hellora.experiments.tables import Table, plain, settings_of
from hellora.methods.strategies import Method
from hellora.model.settings import ModelSettings
from hellora.server.guard import GuardSettings
from hellora.tasks import Task

# What may change from one resume to the next.
MAY_CHANGE = ("compute", "tracking", "guard", "min_clients", "attempts", "keep", "diagnostics")


@dataclass(frozen=True, eq=False)
class Experiment:
    """An experiment is checked. `table` is the whole of it with every default written out."""

    name: str
    run: RunSettings
    task: Task
    metrics: tuple[Metric, ...]  # besides the task's own
    model: ModelSettings
    data: DataSettings
    partitioner: Partitioner
    fleet: FleetSettings
    policy: PolicySettings
    method: Method
    train: TrainSettings
    wire: WireSettings
    guard: GuardSettings
    stop: StopSettings
    compute: ComputeSettings
    tracking: TrackingSettings
    table: Table = field(repr=False)
    found: str = ""  # how its task was found, where nobody named one

    def to_toml(self) -> str:
        """Write the whole of it as an experiment file, every default written out."""
        return tomli_w.dumps(self.table)

    def same_run(self, other: "Experiment") -> bool:
        """Return True if both describe the same computation."""
        return not self.differences(other)

    def differences(self, other: "Experiment") -> list[str]:
        """Return the settings, "section.key", in which the two are not the same computation. Where it is done, who is
        told of it, and when it gives up, may change."""
        mine, theirs = (settings_of({k: v for k, v in e.table.items() if k not in MAY_CHANGE}) for e in (self, other))
        return sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))

    @property
    def natural(self) -> str | None:
        """Return the column whose values are the clients; None where a partitioner makes them up."""
        return getattr(self.partitioner, "column", None)

    @property
    def most_clients(self) -> int | None:
        """Return how many clients there are at most; None where only the data tell."""
        return self.data.clients if self.natural else self.data.num_clients

    def with_given(self, model: ModelSettings, data: DataSettings) -> "Experiment":
        """Return the same experiment with other settings of model and data, which may be objects in memory."""
        names = {"model": model.name, "data": data.name}
        table = {**self.table, **{key: {**self.table[key], "name": name} for key, name in names.items()}}
        return replace(self, model=model, data=data, table=table)

    def with_clients(self, clients: int) -> "Experiment":
        """Return the same experiment with the number of its natural clients, which its data tell."""
        return replace(self, data=replace(self.data, clients=clients))

    def with_task(self, task: Task) -> "Experiment":
        """Return the same experiment with what its task has found of the data."""
        found = replace(self, task=task)
        return replace(found, table={**self.table, "task": {**self.table["task"], **found.task_settings}})

    @property
    def task_settings(self) -> Table:
        """Return the task's own settings, as a table has them."""
        task: Any = self.task  # each is a dataclass
        return plain(asdict(task))

    def with_threads(self, threads: int) -> "Experiment":
        """Return the same experiment with `compute.threads` settled."""
        compute = replace(self.compute, threads=threads)
        return replace(self, compute=compute, table={**self.table, "compute": plain(asdict(compute))})
