"""A planner tells what a client can afford in bytes and seconds, and how it trains to afford it.

A row of an allocation fits a client if under some policy its predicted peak, uplink and time are within the budget; of
the policies that fit, the fastest is taken. What may be used is the run's choice (`[policy]`).
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product

import numpy as np

from hellora.budgets.cost import Cost, CostModel, Work
from hellora.budgets.cost_of_sums import cost_of_sums
from hellora.core.errors import InputError
from hellora.core.exchange import Declared, Policy, Recompute, TrainSettings
from hellora.core.types import Budget, ClientProfile, Mask, Ranks
from hellora.core.units import in_bytes

RESERVE = 0.05  # of what a step holds, kept free for what the coefficients do not see
MICRO_BATCH_SLOWDOWN = 0.12  # of a batch in two halves, four quarters …, each time
INT8_SLOWDOWN = 0.5  # measured is 0.1; but it is not exact, so that what is comes first

USES = ("recompute_frozen", "recompute_all", "micro_batch", "beside", "int8_activations", "bf16")
EXACT = ("recompute_frozen", "recompute_all", "micro_batch", "beside")

Question = tuple[Budget, float | None, Work, bytes]  # a client's means, and the row it asks for


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate says how a client can train a row, at what predicted cost; `seconds` is None for an unknown speed."""

    policy: Policy
    cost: Cost
    seconds: float | None


@dataclass(frozen=True, eq=False)
class Planner:
    """A planner chooses policies. `policy` is what all clients do, `may` what one may do besides to stay in budget."""

    model: CostModel
    train: TrainSettings
    policy: Policy = Policy()
    may: tuple[str, ...] = EXACT
    estimates: dict[Question, Estimate | None] = field(default_factory=dict)  # known so far
    fitting: dict[Question, bool] = field(default_factory=dict)

    def estimate(self, client: ClientProfile, ranks: Ranks) -> Estimate | None:
        """Return the fastest way to train `ranks` (layers,) within the client's budget; None if there is none."""
        key = self.key(client, ranks)
        if key not in self.estimates:
            work = self.work(client)
            fastest = sorted(self.usable(work), key=lambda policy: self.operations(ranks, policy, work))
            self.estimates[key] = self.first_that_fits(client, ranks, fastest)
        return self.estimates[key]

    def fits(self, client: ClientProfile, ranks: Ranks) -> bool:
        """Return True if there is any way. Those without recomputation come first, whose coefficients are the fastest
        to count.
        """
        if not ranks.any():
            return True
        key = self.key(client, ranks)
        if key not in self.fitting:
            self.fitting[key] = self.first_that_fits(client, ranks, self.usable(self.work(client))) is not None
        return self.fitting[key]

    def key(self, client: ClientProfile, ranks: Ranks) -> Question:
        return client.budget, client.speed, self.work(client), ranks.astype(np.int64).tobytes()

    def first_that_fits(self, client: ClientProfile, ranks: Ranks, policies: Sequence[Policy]) -> Estimate | None:
        """Return an estimate of the first policy under which the row fits. The coefficients that later ones need stay
        uncounted.
        """
        estimates = (self.estimate_of(client, ranks, policy) for policy in policies)
        return next((estimate for estimate in estimates if self.within(client.budget, estimate)), None)

    def trains(self, client: ClientProfile) -> bool:
        """Return True if the client can train anything at all."""
        return any(self.fits(client, ranks) for ranks in self.smallest_rows)

    @property
    def smallest_rows(self) -> list[Ranks]:
        """Return the rows with one component of one layer, the deepest layer first."""
        return list(np.eye(self.model.spec.num_layers, dtype=np.int64)[::-1])

    def usable(self, work: Work) -> list[Policy]:
        """Return the policies that may be used, without micro-batches as large as a batch."""
        return [policy for policy in self.policies if policy.micro_batch is None or policy.micro_batch < work.batch]

    def estimate_of(self, client: ClientProfile, ranks: Ranks, policy: Policy) -> Estimate:
        work = self.work(client)
        seconds = None if client.speed is None else self.operations(ranks, policy, work) / client.speed
        return Estimate(policy, self.model.cost(ranks, policy, work), seconds)

    def estimate_of_sums(self, client: ClientProfile, named: Declared, columns: int) -> Estimate:
        """Predict what it costs a client to sum its features, of which (`columns`, `columns`) products are taken."""
        cost = cost_of_sums(self.model, client.num_examples, named, columns)
        return Estimate(Policy(), cost, None if client.speed is None else cost.operations / client.speed)

    def within(self, budget: Budget, estimate: Estimate) -> bool:
        cost = estimate.cost
        if cost.refused:
            return False
        if budget.memory_bytes is not None and self.needed_memory_bytes(cost) > budget.memory_bytes:
            return False
        if budget.seconds is not None and (estimate.seconds is None or estimate.seconds > budget.seconds):
            return False
        return budget.uplink_bytes is None or cost.uplink_bytes <= budget.uplink_bytes

    def needed_memory_bytes(self, cost: Cost) -> int:
        """Return the least `memory_bytes` of a budget that this cost fits."""
        return math.ceil(cost.peak_bytes + RESERVE * (cost.peak_bytes - self.model.weights_bytes))

    def operations(self, ranks: Ranks, policy: Policy, work: Work) -> float:
        """Count the operations of a round, with what a policy adds besides operations as if it were more of them."""
        passes = 1 if policy.micro_batch is None else math.ceil(work.batch / policy.micro_batch)
        slower = 1 + MICRO_BATCH_SLOWDOWN * math.log2(passes) + INT8_SLOWDOWN * policy.int8_activations
        return self.model.operations(ranks, policy, work) * slower

    def work(self, client: ClientProfile) -> Work:
        """Return what the client does in a round; `steps` of batches count as passes over its examples."""
        rows = client.num_examples if client.num_rows is None else client.num_rows
        train, examples = self.train, rows or self.train.batch_size
        batch = min(train.batch_size, examples)
        epochs = float(train.epochs) if train.steps is None else train.steps * batch / examples
        return Work(examples, train.batch_size, epochs)

    @cached_property
    def policies(self) -> tuple[Policy, ...]:
        """Return every policy that a client may use, on top of what all use; of two as fast, the first is taken."""
        own, may = self.policy, set(self.may)
        ways: tuple[Recompute, ...] = ("none", "frozen", "all")
        more = ways[ways.index(own.recompute) + 1 :]
        recompute = [own.recompute, *(how for how in more if f"recompute_{how}" in may)]
        halves = [2**i for i in range(math.ceil(math.log2(max(self.train.batch_size, 1))))]
        micro = [own.micro_batch, *(size for size in halves if size < (own.micro_batch or math.inf))]
        return tuple(
            replace(own, recompute=how, micro_batch=size, merge=merge, int8_activations=int8, bf16=bf16)
            for how, size, merge, int8, bf16 in product(
                recompute,
                micro if "micro_batch" in may else [own.micro_batch],
                [True, False] if own.merge and "beside" in may else [own.merge],
                [False, True][own.int8_activations : 1 + (own.int8_activations or "int8_activations" in may)],
                [False, True][own.bf16 : 1 + (own.bf16 or "bf16" in may)],
            )
        )

    def check(self, clients: tuple[ClientProfile, ...], mask: Mask) -> None:
        """Raise InputError unless every row of `mask` (clients, layers, max_rank) fits its client."""
        for client, row in zip(clients, mask, strict=True):
            if not self.fits(client, row.sum(axis=1)):
                raise InputError(
                    f"the allocator gave client {client.id} a row that does not fit its budget "
                    f"({in_words(client.budget)}): it must ask context.largest_allocation() or context.fits()"
                )

    def explain(self, client: ClientProfile) -> str:
        """Say why nothing fits a client, and the least that would."""
        policies = self.usable(self.work(client))
        every = [self.estimate_of(client, ranks, policy) for ranks in self.smallest_rows for policy in policies]
        least = [estimate for estimate in every if not estimate.cost.refused]
        nothing = f"nothing fits a client with {in_words(client.budget)}"
        if not least:
            how, why = every[0].policy.in_words, every[0].cost.refused
            return f"{nothing}: policy.use = {how} does not work with this model ({why}): leave it out"
        parts = [f"memory {in_bytes(min(self.needed_memory_bytes(estimate.cost) for estimate in least))}"]
        parts += [f"uplink {in_bytes(min(estimate.cost.uplink_bytes for estimate in least))}"]
        times = [estimate.seconds for estimate in least if estimate.seconds is not None]
        parts += [f"{min(times):.3g} s"] if times else []
        return f"{nothing}: the least that would is {', '.join(parts)}"


def in_words(budget: Budget) -> str:
    """Write a budget in bytes and seconds for a person."""
    parts = [] if budget.memory_bytes is None else [f"memory {in_bytes(budget.memory_bytes)}"]
    parts += [] if budget.uplink_bytes is None else [f"uplink {in_bytes(budget.uplink_bytes)}"]
    parts += [] if budget.seconds is None else [f"{budget.seconds:g} s per round"]
    return ", ".join(parts) or "no limit in bytes or seconds"


def largest(count: int, fits: Callable[[int], bool]) -> int:
    """Return the largest c of 0 … count for which fits(c); 0 always fits."""
    return next((c for c in range(count, 0, -1) if fits(c)), 0)


def largest_of_growing(count: int, fits: Callable[[int], bool]) -> int:
    """Return the same for a cost that grows with c, by bisection."""
    return bisect_left(range(1, count + 1), True, key=lambda c: not fits(c))
