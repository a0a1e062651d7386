"""Ours, after Fed-pilot (arXiv 2410.10200) and the cost model of docs/budgets.md: choose the most valuable row that
fits.

    max over ranks r_ij of  Σ_j v_j · r_ij / R   with  r_i within client i's budget in layers, ranks, bytes, seconds

v_j is the layer's Fisher information, a geometric prior (the probabilities of `randomized_geometric`), or 1. Memory
follows the shallowest trained layer, so each layer d is tried as the limit: of the layers from d on, the most valuable
are filled with components one after another, as far as they fit. For layers that cost alike the best of these rows is
the maximum: if the shallowest of a row were not among its most valuable, a deeper one in its place would be worth more
and cost less. For unequal layers it is a row that fits, and need not be the best. The planner chooses the policy.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from hellora.budgets.planner import largest_of_growing
from hellora.core.state import StrategyState
from hellora.core.types import Allocation, ClientProfile, Ranks
from hellora.methods.allocators.fisher import Fisher
from hellora.methods.allocators.geometric import Pattern
from hellora.methods.allocators.randomized_geometric import RandomizedGeometric
from hellora.methods.context import RoundContext, Scores
from hellora.methods.demands import PLANNER, Demands
from hellora.methods.strategies import Allocator

Value = Literal["fisher", "geometric", "uniform"]


@dataclass(frozen=True)
class BudgetValue(Allocator):
    """Chooses the layers and ranks of the greatest value that the client can afford in bytes and seconds."""

    value: Value = "uniform"  # of a layer: measured, by a pattern, or alike
    refresh: int | None = None  # rounds between measurements of Fisher information; None = a tenth of the run
    pattern: Pattern = "bottleneck"  # of the geometric prior

    def __post_init__(self) -> None:
        if self.value not in get_args(Value):
            raise ValueError(f"value must be one of {', '.join(get_args(Value))}, not {self.value!r}")
        _ = self.fisher  # checks the rest

    @property
    def demands(self) -> Demands:
        of_value = self.fisher.demands if self.value == "fisher" else Demands()
        return of_value.also(needs={PLANNER})

    @property
    def fisher(self) -> Fisher:
        """Return what measures Fisher information."""
        return Fisher(refresh=self.refresh, fallback=self.pattern)

    def allocate(self, context: RoundContext) -> tuple[Allocation, StrategyState]:
        values, state = self.values(context)
        known: dict[object, Ranks] = {}  # clients of one budget get one row
        rows = []
        for client in context.cohort:
            alike = (client.budget, client.speed, client.num_examples, client.num_rows)
            if alike not in known:
                known[alike] = best_ranks(context, client, values)
            rows.append(known[alike])
        return context.allocation_of_ranks(rows), state

    def values(self, context: RoundContext) -> tuple[Scores, StrategyState]:
        """Return v, (layers,), and what to find again next round."""
        if self.value == "fisher":
            state = self.fisher.measured(context)
            scores = state["scores"].numpy()
            return (scores if np.isfinite(scores).all() else np.ones_like(scores)), state
        if self.value == "geometric":
            return RandomizedGeometric(self.pattern).probabilities(context), {}
        return np.ones(context.spec.num_layers), {}


def best_ranks(context: RoundContext, client: ClientProfile, values: Scores) -> Ranks:
    """Return the row (layers,) of the greatest value that fits the client; all 0 if none does."""
    num_layers = context.spec.num_layers
    limits = client.budget.ranks(num_layers, context.spec.max_rank)
    best, best_value = np.zeros_like(limits), 0.0
    for shallowest in reversed(range(num_layers)):  # of rows of one value the deepest, which costs the least
        layers = np.arange(shallowest, num_layers)
        order = layers[np.lexsort((-layers, -values[layers]))][: client.budget.capacity(num_layers)]
        ranks = longest_that_fits(context, client, order, limits)
        if (value := float(values @ ranks)) > best_value * (1 + 1e-12):
            best, best_value = ranks, value
    return best


def longest_that_fits(context: RoundContext, client: ClientProfile, order: Ranks, limits: Ranks) -> Ranks:
    """Fill as many layers of `order` as fit at their limits, then as many components of the next one."""

    def filled(whole: int, more: int = 0) -> Ranks:
        ranks = np.zeros_like(limits)
        ranks[order[:whole]] = limits[order[:whole]]
        ranks[order[whole : whole + 1]] = more
        return ranks

    whole = largest_of_growing(len(order), lambda count: context.fits(client, filled(count)))
    limit = int(limits[order[whole]]) if whole < len(order) else 0
    return filled(whole, largest_of_growing(limit, lambda more: context.fits(client, filled(whole, more))))
