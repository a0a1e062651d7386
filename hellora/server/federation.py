"""A federation holds the constants of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from hellora.budgets.planner import Planner
from hellora.core.errors import InputError
from hellora.core.exchange import Policy, TrainSettings, WireFormat
from hellora.core.state import ServerState
from hellora.core.types import AdapterSpec, Budget, ClientProfile, Mask
from hellora.methods.closed_form import Targets
from hellora.methods.context import LentModel, RoundContext
from hellora.methods.demands import HEAD_ALONE, PROXY_DATA, PUBLIC_DATA
from hellora.methods.strategies import Method, Strategy


@dataclass(frozen=True)
class Federation:
    """A federation says who takes part, what is trained, for how long."""

    spec: AdapterSpec
    fleet: tuple[ClientProfile, ...]  # by id
    method: Method
    rounds: int
    cohort: int  # clients per round
    seed: int
    train: TrainSettings
    min_clients: int = 1  # usable updates that a round needs
    attempts: int = 3  # cohorts tried before a round is given up
    policy: Policy = Policy()  # of every client, where no planner chooses
    planner: Planner | None = None  # where a client has a budget in bytes or seconds, or a speed
    spares: int = 0  # clients asked besides; the first `cohort` to answer count
    deadline: float | None = None  # seconds that a client has in a round
    simulated: bool = True  # False: clients are real, so who answers, and when, is the backend's to see
    wire: WireFormat = "fp32"  # how the backend lets tensors travel
    max_norm: float | Literal["auto"] | None = None  # of a client's whole delta; one with a larger one is rejected
    max_weight: float | None = None  # of a client, in medians of those that counted with it: see `guard`
    diagnostics: bool = True  # measured after each round
    targets: Targets = "classes"  # of an example: what a head that is solved is to say

    def __post_init__(self) -> None:
        if min(self.rounds, self.cohort, self.min_clients, self.attempts) < 1:
            raise InputError("rounds, cohort, min_clients and attempts must be at least 1")
        self.method.aggregator.check(self.spec)
        if sorted({p.id for p in self.fleet}) != [p.id for p in self.fleet]:
            raise InputError("the fleet must be in the order of its ids, each id once")
        if self.simulated and (self.spares or self.deadline is not None) and not self.timed:
            raise InputError("spares and a deadline need a planner, and the speed and link of every client")
        if not self.able:
            if self.planner is not None and any(self.counts(p) for p in self.fleet):
                raise InputError("fleet: " + self.planner.explain(next(p for p in self.fleet if self.counts(p))))
            raise InputError(
                "no client can train a layer: give at least one group more than 0 in fleet.layers and fleet.ranks"
            )

    @cached_property
    def by_id(self) -> Mapping[int, ClientProfile]:
        return {client.id: client for client in self.fleet}

    @cached_property
    def able(self) -> tuple[ClientProfile, ...]:
        """Return the clients that can train something, by id."""
        return tuple(p for p in self.fleet if self.counts(p) and (self.planner is None or self.planner.trains(p)))

    @property
    def timed(self) -> bool:
        """Return True if the time of every client can be predicted."""
        return self.planner is not None and all(p.speed is not None and p.link is not None for p in self.fleet)

    @property
    def left_out(self) -> Mapping[Budget, tuple[ClientProfile, ...]]:
        """Return the clients for which nothing fits in bytes or seconds, by budget."""
        able = {client.id for client in self.able}
        out: dict[Budget, tuple[ClientProfile, ...]] = {}
        for client in self.fleet:
            if self.counts(client) and client.id not in able:
                out[client.budget] = (*out.get(client.budget, ()), client)
        return out

    def asks(self, row: Mask) -> bool:
        """Return True if a client with this row of an allocation has anything to train."""
        return bool(row.any()) or HEAD_ALONE in self.method.allocator.demands.promises

    def counts(self, client: ClientProfile) -> bool:
        """Return True if the client's budget in layers and ranks allows to train anything."""
        return client.budget.trains(self.spec.num_layers, self.spec.max_rank)

    def context(self, state: ServerState, attempt: int = 0) -> RoundContext:
        """Return the state's round before anybody is asked, without any one strategy's part: see `RoundContext.of`."""
        return RoundContext(
            round=state.round,
            rounds=self.rounds,
            seed=self.seed,
            spec=self.spec,
            fleet=self.fleet,
            able=self.able,
            asked=self.cohort + self.spares,
            attempt=attempt,
            adapter=state.adapter,
            reports=state.reports,
            planner=self.planner,
            max_weight=self.max_weight,
        )


def lent_to(strategy: Strategy, lent: LentModel | None) -> LentModel | None:
    """Return what a strategy gets of the server's model: nothing, unless it says that it needs data to go with it."""
    return lent if strategy.demands.needs & {PROXY_DATA, PUBLIC_DATA} else None
