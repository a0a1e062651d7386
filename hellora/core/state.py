"""A round leaves a state to go on from, and a report of what happened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hellora.core.exchange import Named, Policy
from hellora.core.types import Adapter, Allocation

StrategyState = Mapping[str, Tensor]  # what a strategy wants to find again next round; part of the checkpoint


@dataclass(frozen=True, slots=True, eq=False)
class ServerState:
    """The next round depends on this state alone: it is the checkpoint. To resume, load it and go on, bit for bit."""

    round: int  # the next round to run
    adapter: Adapter
    strategies: StrategyState = field(default_factory=dict)  # of every strategy, "<kind>/<name>": see `select`
    reports: Mapping[int, Named] = field(default_factory=dict)  # last round's, of the clients that counted, "rule/name"
    kept: Mapping[int, Named] = field(
        default_factory=dict
    )  # what simulated clients keep, "rule/name" or "private/name"
    kept_versions: Mapping[int, int] = field(default_factory=dict)  # the last round in which each real client counted
    norms: Mapping[str, tuple[float, ...]] = field(
        default_factory=dict
    )  # of deltas that counted, the last ones, by the factors that clients trained; where guard.max_norm is "auto"

    @property
    def private(self) -> dict[int, dict[str, Tensor]]:
        """Return what simulated clients have of the adapter of their own, by flat name: a head, a factor."""
        found = {client: select(named, "private") for client, named in self.kept.items()}
        return {client: own for client, own in found.items() if own}


def select(tensors: Named, owner: str) -> dict[str, Tensor]:
    """Return the tensors of one owner, under the owner's own names."""
    return {key.removeprefix(f"{owner}/"): value for key, value in tensors.items() if key.startswith(f"{owner}/")}


def owned(tensors: Named, owner: str) -> dict[str, Tensor]:
    """Undo `select`: put the owner in front of every name."""
    return {f"{owner}/{name}": value for name, value in tensors.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """An attempt at a round records who was asked, whose updates were usable, who failed and why, what travelled."""

    cohort: tuple[int, ...]
    updated: tuple[int, ...]
    missing: Mapping[int, str]
    rejected: Mapping[int, str]
    downlink_bytes: Mapping[int, int]
    uplink_bytes: Mapping[int, int]  # of every answer that arrived, rejected ones too
    simulated_seconds: float | None = None  # how long it took the simulated devices; None = not known
    dropped: Mapping[int, Sequence[str]] = field(default_factory=dict)  # why answers did not count, by who sent them


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Diagnostics say what goes quietly wrong where unequal adapters are averaged, and from how many modules."""

    aggregation_error: float | None  # of a mean of factors against the mean of products; None = nothing to measure
    error_modules: tuple[int, int]  # it was measured in so many, of so many that somebody trained
    energy: tuple[float, ...]  # (max_rank,): the share of ‖ΔW‖_F² in the 1st, 2nd, … singular direction
    energy_modules: tuple[int, int]  # it was measured in so many, of all


@dataclass(frozen=True, slots=True, eq=False)
class RoundReport:
    """A report says of a finished round what a log line, a plot or a test needs; `state` is the state after it.

    `attempts` ends with the one that counted; `allocation` and `client_metrics` are of that one.
    """

    round: int
    state: ServerState
    allocation: Allocation
    client_metrics: Mapping[int, Mapping[str, float]]
    attempts: tuple[Attempt, ...]
    diagnostics: Diagnostics | None = None  # None where they are switched off
    policies: Mapping[int, Policy] = field(default_factory=dict)  # of the clients that were asked to train
    sums: tuple[Attempt, ...] = ()  # waves in which clients summed their features, before round 0 or after the round

    @property
    def counted(self) -> Attempt:
        return self.attempts[-1]

    @property
    def downlink_bytes(self) -> int:
        """Count the bytes sent to clients, in all attempts."""
        return sum(sum(attempt.downlink_bytes.values()) for attempt in (*self.attempts, *self.sums))

    @property
    def uplink_bytes(self) -> int:
        """Count the bytes that clients sent, in all attempts."""
        return sum(sum(attempt.uplink_bytes.values()) for attempt in (*self.attempts, *self.sums))

    @property
    def simulated_seconds(self) -> float | None:
        """Return how long all attempts took the simulated devices; None = not known."""
        every = (*self.attempts, *self.sums)
        known = [attempt.simulated_seconds for attempt in every if attempt.simulated_seconds is not None]
        return sum(known) if len(known) == len(every) else None
