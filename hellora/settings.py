"""Floor 5: the tables of an experiment file that belong to no other module. [model], [data], [train] and [server] are
ModelSettings, DataSettings, TrainSettings and ServerStep."""

from dataclasses import dataclass

import numpy as np

from hellora.seeds import rng_for
from hellora.types import Budget, HeadPolicy


@dataclass(frozen=True)
class RunSettings:
    """The top of the file."""

    seed: int = 0
    rounds: int = 10
    cohort: int = 8  # clients per round
    min_clients: int = 1  # usable updates that a round needs
    attempts: int = 3  # cohorts tried in a round before the run stops
    eval_every: int = 1  # rounds between evaluations; the last round is always evaluated

    def __post_init__(self) -> None:
        for name in ("rounds", "cohort", "min_clients", "attempts", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.min_clients > self.cohort:
            raise ValueError(f"min_clients = {self.min_clients} can never be met by cohort = {self.cohort}")


@dataclass(frozen=True)
class FleetSettings:
    """The [fleet] table: capacity groups, and their shares of the clients (RoC)."""

    layers: tuple[int, ...] = ()  # how many layers a client of each group can train; () = all, for everyone
    shares: tuple[float, ...] = ()  # () = equal

    def __post_init__(self) -> None:
        if any(capacity < 0 for capacity in self.layers):
            raise ValueError("layers must not be negative")
        if self.layers and not any(self.layers):
            raise ValueError("layers is 0 for every group, so no client can train: give at least one group more than 0")
        if self.shares and len(self.shares) != len(self.layers):
            raise ValueError(f"shares has {len(self.shares)} numbers, layers has {len(self.layers)}: give one each")
        if any(share < 0 for share in self.shares) or (self.shares and not sum(self.shares)):
            raise ValueError("shares must not be negative, nor all 0")

    def budgets(self, clients: int, seed: int) -> list[Budget]:
        """One budget per client id: groups in proportion to their shares (largest remainder), dealt out by seed."""
        if not self.layers:
            return [Budget()] * clients
        shares = np.array(self.shares or [1.0] * len(self.layers))
        exact = clients * shares / shares.sum()
        counts = np.floor(exact).astype(int)
        for group in np.argsort(counts - exact, kind="stable")[: clients - counts.sum()]:
            counts[group] += 1
        groups = rng_for(seed, "fleet").permutation(np.repeat(np.arange(len(counts)), counts))
        return [Budget(layers=self.layers[group]) for group in groups]


@dataclass(frozen=True)
class MethodSettings:
    """The [method] table, less the strategies' own settings."""

    allocator: str = "fed_hello"
    dispatcher: str = "whole"
    aggregator: str = "participant_mean"
    head: HeadPolicy = "aggregate"


@dataclass(frozen=True)
class TaskSettings:
    """The [task] table, less the task's own settings."""

    name: str = "sequence_classification"


@dataclass(frozen=True)
class ComputeSettings:
    """The [compute] table: where the work is done. It does not change results at the same number of threads."""

    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps …; auto = every CUDA device, else the CPU
    workers: int = 1  # processes that train side by side
    threads: int = 0  # CPU threads of each process; 0 = the machine's cores divided by the workers
    eval_batch_size: int = 64

    def __post_init__(self) -> None:
        if self.workers < 1 or self.threads < 0 or self.eval_batch_size < 1:
            raise ValueError("workers and eval_batch_size must be at least 1, and threads 0 (automatic) or more")
