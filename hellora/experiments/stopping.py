"""Early stopping: a run ends before its last round, by what it measures on validation data, never on the test's.

It remembers nothing but what rounds.jsonl has, which a checkpoint seals: so a resumed run stops at the same round.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hellora.core.metrics import LOWER_IS_BETTER, main_metric

Measured = Sequence[tuple[int, Mapping[str, float]]]  # rounds that were validated, with their metrics, in order


@dataclass(frozen=True)
class Ended:
    """A run ended early after a round: why, in words, and which round was the best."""

    round: int
    why: str
    metric: str
    best: float
    best_round: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class StopSettings:
    """The [stop] table says when a run ends before its last round. It needs validation data (data.validation)."""

    metric: str = ""  # on validation data; "" = the main one of the task, such as accuracy
    patience: int = 0  # evaluations in a row, none better than the best before them, that end the run; 0 = no limit
    target: float | None = None  # the value of the metric that ends it

    def __post_init__(self) -> None:
        if self.patience < 0:
            raise ValueError(f"patience must be 0 (no limit) or a number of evaluations, not {self.patience}")
        if self.metric and not self.asked:
            raise ValueError(f"metric = {self.metric!r} alone ends no run: set patience, such as 3, or target")

    @property
    def asked(self) -> bool:
        """Return True if something can end the run early."""
        return self.patience > 0 or self.target is not None

    def ended(self, measured: Measured) -> Ended | None:
        """Say if the last of these rounds ends the run; a metric that is missing in a round was not better there."""
        if not self.asked or not measured:
            return None
        name = self.metric or main_metric(measured[-1][1])
        sign = -1 if name in LOWER_IS_BETTER else 1
        values = [(place, round, found.get(name, math.nan)) for place, (round, found) in enumerate(measured)]
        known = [each for each in values if math.isfinite(each[2])]
        if not known:
            return None
        place, best_round, best = max(known, key=lambda one: (sign * one[2], -one[0]))  # the first of equals
        since, why = len(measured) - 1 - place, ""
        if self.target is not None and place == len(measured) - 1 and sign * best >= sign * self.target:
            why = f"validation {name} {best:.3f} has reached stop.target = {self.target:g}"
        elif self.patience and since >= self.patience:
            times = f"{since} evaluation{'s' * (since > 1)}"
            why = f"validation {name} has not been better than {best:.3f}, after round {best_round}, for {times}"
        return Ended(measured[-1][0], why, name, best, best_round) if why else None
