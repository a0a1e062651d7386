"""A context holds what every strategy sees of a round."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hellora.budgets.planner import Planner, largest
from hellora.core.errors import InputError
from hellora.core.exchange import Named
from hellora.core.robust import bounded_weights
from hellora.core.seeds import rng_for, seed_for
from hellora.core.state import ServerState, StrategyState, select
from hellora.core.types import Adapter, AdapterSpec, Allocation, ClientProfile, Mask, Ranks

Scores = npt.NDArray[np.float64]  # (layers,)
LayersOf = Callable[[int], npt.ArrayLike]  # which layers, of how many


class LentModel(Protocol):
    """The server lends its model, with data that it may see, to a strategy that needs PROXY_DATA or PUBLIC_DATA."""

    def layer_scores(self, adapter: Adapter) -> Scores:
        """Return the Fisher scores of an adapter on the proxy data, (layers,)."""

    def distil(self, students: Mapping[int, Adapter], weights: Mapping[int, float], how: Any, seed: int) -> Any:
        """Return the students by rank, each taught by the ensemble of all on the public data, in which they have
        `weights`.

        `how` has the settings: see `methods/aggregators/mutual_distillation.py`.
        """


@dataclass(frozen=True, eq=False)
class RoundContext:
    """A context shows a round to a strategy. `state` is the strategy's own: what it returned last, {} at first."""

    round: int
    rounds: int  # of the whole run
    seed: int  # of the experiment
    spec: AdapterSpec
    fleet: tuple[ClientProfile, ...]  # every client, by id
    cohort: tuple[ClientProfile, ...] = ()  # who is asked; () for a sampler
    able: tuple[ClientProfile, ...] = ()  # the clients that can train something, by id
    asked: int = 0  # how many clients a sampler is to choose
    attempt: int = 0  # at this round; others had too few usable updates
    adapter: Adapter = field(default_factory=lambda: Adapter({}))  # the global one, before the round
    state: StrategyState = field(default_factory=dict)
    reports: Mapping[int, Named] = field(default_factory=dict)  # "rule/name" by client: of the last round that counted
    trained: Mapping[int, Mask] = field(
        default_factory=dict
    )  # the rows of clients that counted, when a round has ended
    updates: Mapping[int, Adapter] = field(default_factory=dict)  # and what they trained, for a server optimizer
    planner: Planner | None = None  # what fits a budget in bytes or seconds; None where no client has one
    lent: LentModel | None = None  # where the strategy needs PROXY_DATA or PUBLIC_DATA
    max_weight: float | None = None  # of a client, in medians of those that count with it

    def of(self, kind: str, state: ServerState) -> "RoundContext":
        """Return the context as the strategy of a kind sees it, with its own part of a state."""
        return replace(self, state=select(state.strategies, kind))

    def layer_scores(self) -> Scores:
        """Return the Fisher scores of the global adapter on proxy data, (layers,): a pass over the data at every call.

        Raises:
            InputError: the strategy does not say that it needs PROXY_DATA.
        """
        if self.lent is None:
            raise InputError("no model is lent to this strategy: let its demands need PROXY_DATA")
        return self.lent.layer_scores(self.adapter)

    def reported(self, name: str) -> dict[int, Tensor]:
        """Return the report "rule/name" of every client that made it in the last round that counted."""
        return {client: tensors[name] for client, tensors in self.reports.items() if name in tensors}

    def weights(self, clients: Iterable[int]) -> dict[int, float]:
        """Return what clients weigh where they report instead of training: their examples, bounded as updates are."""
        examples = {client.id: float(client.num_examples) for client in self.fleet}
        return bounded_weights({client: examples[client] for client in clients}, self.max_weight)

    def rng(self, client: int, purpose: str, round: int | None = None) -> np.random.Generator:
        """Make a generator keyed by (experiment seed, round, client id), never by the order of calls."""
        return rng_for(self.seed, purpose, self.round if round is None else round, client)

    def seed_for(self, purpose: str) -> int:
        """Return a seed of the round for one purpose."""
        return seed_for(self.seed, purpose, self.round)

    # ------------------------------------------------------------------------------------- what clients can afford

    def capacity(self, client: ClientProfile, layers_of: LayersOf) -> int:
        """Return the most layers c of its budget that a client can train if it trains layers_of(c)."""
        limit = client.budget.capacity(self.spec.num_layers)
        return largest(limit, lambda c: self.fits(client, self.ranks(client, layers_of(c))))

    def fits(self, client: ClientProfile, ranks: Ranks) -> bool:
        """Return True if a client can afford to train `ranks` (layers,) in bytes and seconds."""
        return self.planner is None or self.planner.fits(client, ranks)

    def fleet_capacities(self, layers_of: LayersOf) -> tuple[int, ...]:
        """Return the distinct capacities above 0 of the whole fleet, ascending: the papers' groups c_1 < … < c_G."""
        return tuple(sorted({self.capacity(client, layers_of) for client in self.fleet} - {0}))

    def ranks(self, client: ClientProfile, layers: npt.ArrayLike) -> Ranks:
        """Return the ranks of its budget in `layers`, and 0 in the others, (layers,)."""
        ranks = np.zeros(self.spec.num_layers, dtype=np.int64)
        chosen = np.asarray(layers, dtype=np.int64)
        ranks[chosen] = client.budget.ranks(self.spec.num_layers, self.spec.max_rank)[chosen]
        return ranks

    def trainable_layers(self, client: ClientProfile) -> npt.NDArray[np.bool_]:
        """Say which layers a client could train in some round, (layers,): each alone, with one rank component."""
        ranks = client.budget.ranks(self.spec.num_layers, self.spec.max_rank)
        one = np.eye(self.spec.num_layers, dtype=np.int64)
        within = client.budget.capacity(self.spec.num_layers) > 0
        return np.array([within and rank > 0 and self.fits(client, row) for rank, row in zip(ranks, one, strict=True)])

    def trainers(self) -> npt.NDArray[np.int64]:
        """Count, for each layer, the clients that could train it in some round, (layers,)."""
        each = [self.trainable_layers(client) for client in self.able]
        counts: npt.NDArray[np.int64] = np.array(each, dtype=np.int64).reshape(-1, self.spec.num_layers).sum(axis=0)
        return counts

    # ----------------------------------------------------------------------------------------- making an allocation

    def allocation_of_ranks(self, ranks: Sequence[Ranks]) -> Allocation:
        """Make the allocation in which each cohort client trains the first `ranks` (layers,) components."""
        rows = np.array(ranks, dtype=np.int64).reshape(len(self.cohort), self.spec.num_layers)
        mask = np.arange(self.spec.max_rank) < rows[:, :, None]
        return Allocation(tuple(client.id for client in self.cohort), mask)

    def allocation(self, layers: Sequence[npt.ArrayLike]) -> Allocation:
        """Make the allocation in which each cohort client trains these layers, to the rank of its budget."""
        return self.allocation_of_ranks(list(map(self.ranks, self.cohort, layers)))

    def largest_allocation(self, layers_of: Callable[[ClientProfile, int], npt.ArrayLike]) -> Allocation:
        """Let each cohort client train layers_of(client, c) for the most layers c that it can afford, at its ranks."""
        rows = []
        for client in self.cohort:
            count = self.capacity(client, partial(layers_of, client))
            rows.append(layers_of(client, count))
        return self.allocation(rows)
