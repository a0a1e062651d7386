"""Floor 5: the tables of an experiment file that belong to no other module. [model], [data], [train] and [server] are
ModelSettings, DataSettings, TrainSettings and ServerStep."""

from dataclasses import dataclass

import numpy as np

from hellora.protocols import Trains
from hellora.seeds import rng_for
from hellora.types import Budget, Factors, HeadPolicy


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
    ranks: tuple[int | tuple[int, ...], ...] = ()  # the rank it can train, or one rank per layer; () = the model's

    def __post_init__(self) -> None:
        if any(capacity < 0 for capacity in self.layers):
            raise ValueError("layers must not be negative")
        if self.layers and not any(self.layers):
            raise ValueError("layers is 0 for every group, so no client can train: give at least one group more than 0")
        if self.layers and self.ranks and len(self.layers) != len(self.ranks):
            raise ValueError(
                f"layers has {len(self.layers)} groups, ranks has {len(self.ranks)}: give one each, or set one to []"
            )
        if any(rank < 0 for ranks in self.ranks for rank in (ranks if isinstance(ranks, tuple) else (ranks,))):
            raise ValueError("ranks must not be negative")
        if self.ranks and not any(np.any(ranks) for ranks in self.ranks):
            raise ValueError("ranks is 0 for every group, so no client can train: give at least one group more than 0")
        if self.shares and len(self.shares) != self.groups:
            raise ValueError(
                f"shares has {len(self.shares)} numbers for {self.groups} groups of clients: give one each"
            )
        if any(share < 0 for share in self.shares) or (self.shares and not sum(self.shares)):
            raise ValueError("shares must not be negative, nor all 0")

    @property
    def groups(self) -> int:
        return max(len(self.layers), len(self.ranks))

    def budget(self, group: int) -> Budget:
        return Budget(self.layers[group] if self.layers else None, self.ranks[group] if self.ranks else None)

    def budgets(self, clients: int, seed: int) -> list[Budget]:
        """One budget per client id: groups in proportion to their shares (largest remainder), dealt out by seed."""
        if not self.groups:
            return [Budget()] * clients
        shares = np.array(self.shares or [1.0] * self.groups)
        exact = clients * shares / shares.sum()
        counts = np.floor(exact).astype(int)
        for group in np.argsort(counts - exact, kind="stable")[: clients - counts.sum()]:
            counts[group] += 1
        groups = rng_for(seed, "fleet").permutation(np.repeat(np.arange(len(counts)), counts))
        return [self.budget(group) for group in groups]


@dataclass(frozen=True)
class MethodSettings:
    """The [method] table, less the strategies' own settings."""

    allocator: str = "fed_hello"
    dispatcher: str = "whole"
    aggregator: str = "participant_mean"
    head: HeadPolicy = "aggregate"
    trains: Trains = "both"  # the factors that clients train: both, B (FFA-LoRA), A, alternate (RoLoRA)
    shares: Factors = "both"  # the factors that are aggregated: both, A (FedSA-LoRA), B


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
