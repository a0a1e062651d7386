"""A comparison is of runs, each known by its place in it, and by what its folder tells once it has ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hellora.core.metrics import main_metric


@dataclass(frozen=True, order=True)
class Cell:
    """Names one run of a comparison."""

    setting: str
    method: str
    seed: int

    @property
    def folder(self) -> Path:
        """Return where its run is, from the comparison's folder."""
        return Path("cells") / self.setting / self.method / f"seed-{self.seed}"


@dataclass(frozen=True)
class Run:
    """Holds a finished run as its folder tells it."""

    summary: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]

    @property
    def metric(self) -> str:
        """Return the main metric of the run's task."""
        return main_metric(self.summary["final"])
