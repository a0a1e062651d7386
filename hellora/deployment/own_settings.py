"""What a client was started with: `hellora client` writes it down, and its trainer reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hellora.budgets.written import written_budget
from hellora.core.types import Budget
from hellora.deployment.own_limits import MAX_BATCH, MAX_STEPS, OwnLimits
from hellora.experiments.machine import free_memory

AUTO_SHARE = 0.9  # of the memory that is free when the client starts


@dataclass(frozen=True)
class OwnSettings:
    """Says what a client says of itself: its name, its data, what it can afford. `memory` is auto, none or a size."""

    name: str
    data: Mapping[str, Any]
    memory: str = "auto"
    layers: int | None = None
    rank: int | None = None
    uplink: str | None = None
    seconds: float | None = None
    speed: float | None = None
    link: str | None = None
    device: str = "auto"
    model: str | None = None  # where the base model lies here
    folder: str = "."  # of this client's own state
    columns: Sequence[str] = ()  # that may be read; see own_limits.py for these
    models: Sequence[str] = ()  # that a server may name
    max_steps: int = MAX_STEPS
    max_batch: int = MAX_BATCH
    threads: int | None = None  # CPU threads at most; None: the cores of this machine
    allow: Sequence[str] = ()  # code of its own machine that a server may name

    @property
    def budget(self) -> Budget:
        """Return what this client can afford; "auto" is nearly all of the memory that is free now."""
        memory: str | int | None = None if self.memory == "none" else self.memory
        if memory == "auto":
            memory = int(AUTO_SHARE * free_memory(self.device))
        return written_budget(
            "--", layers=self.layers, rank=self.rank, memory=memory, seconds=self.seconds, uplink=self.uplink
        )

    @property
    def limits(self) -> OwnLimits:
        """Return what a round of this client may cost."""
        return OwnLimits(self.budget, self.max_steps, self.max_batch)
