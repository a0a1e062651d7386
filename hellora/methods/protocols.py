"""What a strategy is. Each kind is one method; a `Method` is the four that make a round."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hellora.budgets.cost import Ranks
from hellora.budgets.planner import Planner, largest
from hellora.core.seeds import rng_for
from hellora.core.types import (
    Adapter,
    AdapterSpec,
    Allocation,
    ClientFailure,
    ClientProfile,
    ClientTask,
    ClientUpdate,
    Factors,
    HeadPolicy,
    Mask,
    Memory,
)
from hellora.methods.server_step import ServerStep

Scores = npt.NDArray[np.float64]
LayersOf = Callable[[int], npt.ArrayLike]  # which layers, of how many
Trains = Literal["both", "A", "B", "alternate"]


@dataclass(frozen=True, eq=False)
class RoundView:
    """What an allocator sees of a round."""

    round: int
    rounds: int  # of the whole run
    cohort: tuple[ClientProfile, ...]
    fleet: tuple[ClientProfile, ...]  # every client, in the cohort or not
    spec: AdapterSpec
    seed: int  # of the experiment
    layer_scores: Callable[[], Scores]  # (layers,): the Fisher pass on proxy data; runs only when called
    memory: Memory = field(default_factory=dict)
    reports: Mapping[int, Tensor] = field(default_factory=dict)  # last round's scores by client, (layers,)
    reported_ranks: Mapping[int, int] = field(default_factory=dict)  # the ranks that clients reported last round
    planner: Planner | None = None  # what fits a budget in bytes and seconds; None where no client has one

    def capacity(self, client: ClientProfile, layers_of: LayersOf) -> int:
        """The most layers c of its budget that a client can train if it trains layers_of(c)."""
        limit = client.budget.capacity(self.spec.num_layers)
        return largest(limit, lambda c: self.fits(client, self.ranks(client, layers_of(c))))

    def fits(self, client: ClientProfile, ranks: Ranks) -> bool:
        """True if a client can afford to train `ranks` (layers,) in bytes and seconds."""
        return self.planner is None or self.planner.fits(client, ranks)

    def fleet_capacities(self, layers_of: LayersOf) -> tuple[int, ...]:
        """The distinct capacities above 0 of the whole fleet, ascending: the papers' groups c_1 < … < c_G."""
        return tuple(sorted({self.capacity(client, layers_of) for client in self.fleet} - {0}))

    def ranks(self, client: ClientProfile, layers: npt.ArrayLike) -> Ranks:
        """The ranks of its budget in `layers`, and 0 in the others, (layers,)."""
        ranks = np.zeros(self.spec.num_layers, dtype=np.int64)
        chosen = np.asarray(layers, dtype=np.int64)
        ranks[chosen] = client.budget.ranks(self.spec.num_layers, self.spec.max_rank)[chosen]
        return ranks

    def rng(self, client: int, purpose: str, round: int | None = None) -> np.random.Generator:
        """A generator keyed by (experiment seed, round, client id), never by the order of calls."""
        return rng_for(self.seed, purpose, self.round if round is None else round, client)

    def allocation_of_ranks(self, ranks: Sequence[Ranks]) -> Allocation:
        """The allocation in which each cohort client trains the first `ranks` (layers,) components."""
        rows = np.array(ranks, dtype=np.int64).reshape(len(self.cohort), self.spec.num_layers)
        mask = np.arange(self.spec.max_rank) < rows[:, :, None]
        return Allocation(tuple(client.id for client in self.cohort), mask)

    def allocation(self, layers: Sequence[npt.ArrayLike]) -> Allocation:
        """The allocation in which each cohort client trains these layers, to the rank of its budget."""
        return self.allocation_of_ranks(list(map(self.ranks, self.cohort, layers)))

    def largest_allocation(self, layers_of: Callable[[ClientProfile, int], npt.ArrayLike]) -> Allocation:
        """Each cohort client trains layers_of(client, c) for the most layers c that it can afford, at its ranks."""
        rows = []
        for client in self.cohort:
            count = self.capacity(client, partial(layers_of, client))
            rows.append(layers_of(client, count))
        return self.allocation(rows)


class Allocator(ABC):
    """Who trains which rank components of which layer."""

    prunes: ClassVar[bool] = False  # True: a client trains no more than the rank that it reported

    @property
    def needs_reports(self) -> bool:
        """True if clients must return one score per trained layer."""
        return False

    @property
    def needs_planner(self) -> bool:
        """True if it asks `view.planner`, which is then there even if no client has a budget in bytes or seconds."""
        return False

    @property
    def needs_proxy(self) -> bool:
        """True if it calls `view.layer_scores()`, so that proxy data must be there before the run starts."""
        return False

    def pruned_ranks(self, memory: Memory, reported: Mapping[int, int]) -> Mapping[int, int]:
        """The rank that clients have pruned themselves to, by id; others train up to their budget.

        It follows from what the allocator remembers and what clients reported last.
        """
        return {}

    @abstractmethod
    def allocate(self, view: RoundView) -> tuple[Allocation, Memory]:
        """The round's allocation, and what to find again in `view.memory` next round."""


class Dispatcher(ABC):
    """Cut the global adapter to what one client receives."""

    bypasses: ClassVar[bool] = False  # True: the client leaves out the blocks in which it trains nothing
    keeps_components: ClassVar[bool] = (
        True  # False: what it sends is not made of the global adapter's own rank components
    )
    sends_untrained: ClassVar[bool] = True  # False: a pair in which a client trains has only what it trains
    sends_prototypes: ClassVar[bool] = False  # True: a client of a smaller rank gets the prototype of its rank

    @abstractmethod
    def dispatch(self, adapter: Adapter, trained: Mask, spec: AdapterSpec) -> Adapter:
        """The adapter that goes to a client whose row of the allocation is `trained` (layers, max_rank)."""


Answers = Sequence[tuple[ClientTask, ClientUpdate]]  # what was sent beside what came back, by client id


class Aggregator(ABC):
    """Fold unequal updates into the next global adapter."""

    keeps_components: ClassVar[bool] = True
    """True: a rank component stays itself from round to round, and one that nobody trained is bit-identical. False: the
    global_pair is factorised anew (SVD), or hands a part to the residual, so that nothing may be remembered by
    component; a layer that nobody trained is bit-identical all the same."""

    averages_components: ClassVar[bool] = True
    """True: components are averaged one by one, so that the dispatcher must send the global adapter's own. False: only
    the products B A of clients count, whatever their components are."""

    trains: ClassVar[tuple[Trains, ...]] = ("both", "B", "alternate")
    """What `method.trains` may be. A alone never is: as long as B is 0, it has no gradient."""

    shares: ClassVar[tuple[Factors, ...]] = get_args(Factors)
    """What `method.shares` may be."""

    pads: ClassVar[bool] = False
    """True: a component of a trained module that a client did not train counts as padding, so it must not be sent."""

    leaves_residual: ClassVar[bool] = False
    """True: what clients receive grows with the rounds, by a residual that is merged into every adapted weight."""

    distils: ClassVar[bool] = False
    """True: it keeps a prototype for every rank, and what it returns is to be distilled on public data."""

    def check(self, spec: AdapterSpec) -> None:  # noqa: B027  most can serve any
        """Raise InputError where this cannot serve adapters of such a shape."""

    @abstractmethod
    def aggregate(self, adapter: Adapter, answers: Answers, spec: AdapterSpec, seed: int) -> Adapter:
        """The aggregated adapter. `seed` is the round's own, for what has to be drawn anew."""


@dataclass(frozen=True)
class Method:
    """A named combination: allocate, dispatch, aggregate, server step, and what happens to head and factors."""

    allocator: Allocator
    dispatcher: Dispatcher
    aggregator: Aggregator
    server_step: ServerStep = ServerStep()
    head: HeadPolicy = "aggregate"
    trains: Trains = "both"
    shares: Factors = "both"  # the factors that are aggregated; the other stays with its client (FedSA-LoRA)

    @property
    def personal(self) -> bool:
        """True if clients keep something of their own, so that each has its own model."""
        return self.head == "local" or self.shares != "both"

    def factors(self, round: int) -> Factors:
        """The factors that clients train in a round. Alternating begins with B (RoLoRA)."""
        if self.trains == "alternate":
            return "A" if round % 2 else "B"
        return self.trains

    def moving(self, round: int) -> frozenset[str]:
        """Which of the server's factors A and B a round may change: those that are trained in it and shared."""
        both = frozenset("AB")
        return both.intersection(*("AB" if which == "both" else which for which in (self.factors(round), self.shares)))


class Backend(ABC):
    """The seam between the server and the clients: two methods, the same for a loop and for a network."""

    @abstractmethod
    def clients(self) -> Sequence[ClientProfile]:
        """Every client of the federation."""

    @abstractmethod
    def train(self, tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFailure]:
        """One answer per task, in any order, as they arrive."""
