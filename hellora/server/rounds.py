"""Run the federated round. `federate` is a generator: stopping early is `break`, a checkpoint is a line in the caller's
loop.

    sample → allocate → order (dispatch, when a task is sent) → the backend trains → gather → fold
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hellora.budgets.planner import Estimate
from hellora.core.errors import InputError, RunError
from hellora.core.state import Attempt, RoundReport, ServerState, StrategyState, owned, select
from hellora.core.types import Adapter, Allocation, LoraPair
from hellora.methods.context import LentModel, RoundContext
from hellora.methods.contributions import head_by_class
from hellora.methods.demands import LASTING_COMPONENTS
from hellora.methods.sharing import private_part, shared, with_private
from hellora.methods.strategies import Answers, Strategy
from hellora.server import guard
from hellora.server.answers import Gathered, gather
from hellora.server.backend import Backend
from hellora.server.diagnostics import client_metrics, diagnose
from hellora.server.drift import drift
from hellora.server.federation import Federation, lent_to
from hellora.server.heads import solved_after, solved_first
from hellora.server.naming import naming
from hellora.server.outbox import Outbox
from hellora.server.simulation import simulate

Lent = LentModel | None
States = Mapping[str, StrategyState]  # by owner, such as "allocator" or "local_training/scaffold"
Accept = Callable[[ServerState], str]  # says why a run must not go on from a state; "" where it may


# ------------------------------------------------------------------------------------------------ who trains, and what


def sample(run: Federation, context: RoundContext, state: ServerState) -> tuple[RoundContext, StrategyState]:
    """Return the context with the round's cohort, and what the sampler wants to find again.

    Raises:
        InputError: the sampler chose somebody who cannot train, or one client twice, or too many.
        RunError: the sampler raised.
    """
    sampler = run.method.sampler
    with naming(sampler, state.round):
        cohort, kept = sampler.sample(context.of("sampler", state))
        ids = [client.id for client in cohort]
        if not {client.id for client in run.able}.issuperset(ids) or ids != sorted(set(ids)):
            raise InputError(f"the sampler chose clients {ids}: they must be able to train, each once, by id")
        if len(ids) > context.asked:
            raise InputError(f"the sampler chose {len(ids)} clients, and {context.asked} are to be asked")
    return replace(context, cohort=tuple(cohort)), kept


def allocate(
    run: Federation, state: ServerState, lent: LentModel | None, attempt: int = 0
) -> tuple[RoundContext, Allocation, States]:
    """Do step 1 of the state's round: sample the cohort, allocate, check every budget.

    Returns:
        The round as strategies see it, who trains what, and what sampler and allocator want to find again next round.

    Raises:
        InputError: the allocation does not fit a client's budget.
        RunError: a strategy raised.
    """
    context, sampled = sample(run, run.context(state, attempt), state)
    allocator = run.method.allocator
    with naming(allocator, state.round):
        own = replace(context.of("allocator", state), lent=lent_to(allocator, lent))
        allocation, allocated = allocator.allocate(own)
        allocation.check(context.cohort, run.spec)
        if run.planner is not None:
            run.planner.check(context.cohort, allocation.mask)
    return context, allocation, {"sampler": sampled, "allocator": allocated}


def estimates(run: Federation, allocation: Allocation) -> Mapping[int, Estimate]:
    """Return how each client with anything to train trains it, and at what predicted cost; {} without a planner."""
    if run.planner is None:
        return {}
    found = {
        client: run.planner.estimate(run.by_id[client], ranks)
        for client, ranks in zip(allocation.clients, allocation.ranks, strict=True)
        if run.asks(ranks)
    }
    return {client: estimate for client, estimate in found.items() if estimate is not None}


# ------------------------------------------------------------------------------------------------------------- folding


def fold(
    run: Federation, state: ServerState, context: RoundContext, answers: Answers, states: States, lent: Lent = None
) -> ServerState:
    """Do step 4: aggregate, take the server's step, and remember what the next round needs.

    `states` has what the strategies of the round want to find again so far; all others keep what they had.
    """
    method, adapter, answers = run.method, state.adapter, guard.bounded(answers, run.max_weight)
    found = dict(states)
    if answers:
        seen = shared(answers, method, state.adapter, run.spec)
        adapter, found["aggregator"] = aggregated(run, state, context, seen, lent)
        rows, updates = {task.client: task.trained for task, _ in seen}, {u.client: u.adapter for _, u in seen}
        trained, optimizer = np.logical_or.reduce(list(rows.values())), method.server_optimizer
        with naming(optimizer, state.round):
            own = replace(context.of("server_optimizer", state), trained=rows, updates=updates)
            adapter, found["server_optimizer"] = optimizer.step(own, adapter, trained, method.moving(state.round))
        for rule in method.local_training:
            with naming(rule, state.round):
                found[f"local_training/{rule.name}"] = rule.remember(ended(context, state, answers, rule))
    kept = dict(state.kept)
    for task, update in answers:
        had = kept.get(update.client, {})
        mine = with_private(state.adapter, select(had, "private"))
        private = {} if task.private else private_part(task, update, mine, run.spec)
        if now := {**owned(select(had, "private"), "private"), **owned(private, "private"), **update.kept}:
            kept[update.client] = now
    versions = dict(state.kept_versions)
    if not run.simulated:
        versions |= {update.client: state.round for task, update in answers if task.declared.kept or task.private}
    strategies = {name: t for name, t in state.strategies.items() if not name.startswith(tuple(f"{o}/" for o in found))}
    for owner, tensors in found.items():
        strategies |= owned(tensors, owner)
    reports = {update.client: update.report for _, update in answers if update.report}
    return ServerState(state.round + 1, adapter, strategies, reports, kept, versions, state.norms)


def aggregated(
    run: Federation, state: ServerState, context: RoundContext, seen: Answers, lent: LentModel | None
) -> tuple[Adapter, StrategyState]:
    """Return what the aggregator makes of the answers as it may see them; a factor that does not move stays, whatever
    it pads or mixes.
    """
    aggregator = run.method.aggregator
    with naming(aggregator, state.round):
        own = replace(context.of("aggregator", state), lent=lent_to(aggregator, lent))
        adapter, kept = aggregator.aggregate(own, seen)
    if run.method.head_mean == "by_class":
        adapter = head_by_class(own, adapter, seen)
    if LASTING_COMPONENTS in aggregator.demands.promises:
        adapter = with_still_factors(adapter, state.adapter, run.method.moving(state.round))
    return adapter, kept


def with_still_factors(aggregated: Adapter, old: Adapter, moving: frozenset[str]) -> Adapter:
    """Return the aggregated adapter with each factor that does not move as it was."""
    pairs = {}
    for name, pair in aggregated.pairs.items():
        still = old.pairs[name]
        pairs[name] = LoraPair(pair.A if "A" in moving else still.A, pair.B if "B" in moving else still.B, pair.scale)
    return replace(aggregated, pairs=pairs)


def ended(context: RoundContext, state: ServerState, answers: Answers, rule: Strategy) -> RoundContext:
    """Return an ended round as a rule of local training sees it: with its own reports and the rows of who counted."""
    reports = {update.client: select(update.report, rule.name) for _, update in answers}
    trained = {task.client: task.trained for task, _ in answers}
    return replace(context.of(f"local_training/{rule.name}", state), reports=reports, trained=trained)


# ------------------------------------------------------------------------------------------------------------ the loop


def federate(
    state: ServerState,
    run: Federation,
    backend: Backend,
    lent: LentModel | None = None,
    accept: Accept = lambda _: "",
) -> Iterator[RoundReport]:
    """Run the rounds from `state.round` on; yield a report after each. The same for every backend.

    A round with fewer than `min_clients` usable updates is repeated with another cohort. A round whose
    allocation asks nobody to train (Exclusive, a cohort of weak clients) ends unchanged. An update that makes the next
    state not finite, or one that is not accepted, is rejected and the round folded without it.

    Args:
        state: the state to go on from; each report has the next one
        run: what stays the same in all rounds
        backend: where the clients are
        lent: the server's model with its data, for strategies that need PROXY_DATA or PUBLIC_DATA
        accept: what else the next state is held against, such as an evaluation

    Raises:
        RunError: a round failed `attempts` times, or a strategy raised: resume from the last yielded state.
    """
    state, first = solved_first(run, state, backend)
    while state.round < run.rounds:
        attempts, sums = list[Attempt](), [*first]
        for number in range(run.attempts):
            tried, after, again = settled(run, state, attempt(state, run, backend, lent, number), backend, lent, accept)
            attempts.append(tried.record)
            sums += again
            if after is not None:
                break
        else:
            raise too_few(run, state, tried.gathered)
        yield report_of(run, after, tried, attempts, sums)
        state, first = after, ()


def report_of(
    run: Federation, state: ServerState, tried: "Tried", attempts: Sequence[Attempt], sums: Sequence[Attempt]
) -> RoundReport:
    """Report a finished round: the state after it, and the attempts at it, of which `tried` counted."""
    answers = guard.bounded(tried.gathered.answers, run.max_weight)
    whole = run.simulated or run.method.shares == "both"  # else a factor of each pair is not here
    measured = client_metrics(answers, tried.outbox.estimated, tried.seconds)
    drifted = drift(answers, run.spec) if run.diagnostics and whole else {}
    return RoundReport(
        round=state.round - 1,
        state=state,
        allocation=tried.outbox.allocation,
        client_metrics={client: {**metrics, **drifted.get(client, {})} for client, metrics in measured.items()},
        attempts=tuple(attempts),
        sums=tuple(sums),
        diagnostics=diagnose(answers if whole else [], state.adapter, run.spec, run.seed) if run.diagnostics else None,
        policies={order.client: tried.outbox.policy(order.client) for order in tried.outbox.orders},
    )


@dataclass(frozen=True, eq=False)
class Tried:
    """One attempt at a round leaves these values."""

    outbox: Outbox
    gathered: Gathered
    states: States  # of sampler, allocator and dispatcher
    seconds: Mapping[int, float]  # simulated, of each client; {} = not known
    record: Attempt

    def without(self, reasons: Mapping[int, str]) -> "Tried":
        """Return the same with these clients' answers rejected, each for its reason."""
        if not reasons:
            return self
        gathered = self.gathered.without(reasons)
        updated = tuple(update.client for _, update in gathered.answers)
        rejected = {f.client: f.reason for f in gathered.failures if f.kind == "rejected"}
        return replace(self, gathered=gathered, record=replace(self.record, updated=updated, rejected=rejected))


def attempt(state: ServerState, run: Federation, backend: Backend, lent: LentModel | None, number: int) -> Tried:
    """Do steps 1 to 3: allocate, order, and gather what clients answer, one answer after the other."""
    return heard(*ordered(state, run, lent, number), backend)


def ordered(state: ServerState, run: Federation, lent: LentModel | None, number: int = 0) -> tuple[Outbox, States]:
    """Do step 1 and prepare step 2: return the orders of an attempt, and what its strategies want to find again."""
    context, allocation, states = allocate(run, state, lent, number)
    outbox = Outbox(run, state, context, allocation, estimates(run, allocation))
    return outbox, {**states, "dispatcher": outbox.seen.state}


def heard(outbox: Outbox, states: States, backend: Backend) -> Tried:
    """Do step 3: gather what clients answer to the orders."""
    crossing = {order.client: outbox.crossing(order.client) for order in outbox.orders}
    there = simulate(outbox.run, outbox.state.round, outbox.orders, outbox.estimated, crossing)
    gathered = gather(outbox.run, outbox.orders, there.missing, backend.train(there.awaited))
    return Tried(outbox, gathered, states, there.seconds, gathered.record(outbox.allocation.clients, there, crossing))


def settled(
    run: Federation, state: ServerState, tried: Tried, backend: Backend, lent: LentModel | None, accept: Accept
) -> tuple[Tried, ServerState | None, Sequence[Attempt]]:
    """Fold an attempt, without the updates that go too far or spoil the next state, and solve the head again where that
    is due; None: too few are left. Last come all sums that were asked for, also for a state that was not accepted.

    Raises:
        RunError: the next state is not one to go on from, and nobody trained anything.
    """
    auto, factors = run.max_norm == "auto", run.method.factors(state.round)
    share = run.train.share_of_round(state.round, run.rounds)  # of lr: norms are compared as if all had the whole
    norms = guard.norms_of(tried.gathered.answers, run.spec, share) if auto and share else {}
    tried, asked = tried.without(guard.too_far(norms, state.norms.get(factors, ()))), list[Attempt]()
    while not tried.outbox.orders or len(tried.gathered.answers) >= run.min_clients:
        answers = tried.gathered.answers
        after, sums = solved_after(run, fold(run, state, tried.outbox.context, answers, tried.states, lent), backend)
        asked += sums
        if not (why := guard.not_finite(after) or accept(after)):
            counted = {update.client: norms[update.client] for _, update in answers} if norms else {}
            return tried, replace(after, norms=guard.remembered(state, factors, counted)), asked
        problem = f"with what {run.method.aggregator.name} makes of round {state.round} {why}"
        if not answers:
            raise RunError(f"{problem}, and nobody trained in it: go back with --resume --from-round")
        tried = tried.without(guard.blamed(guard.norms_of(answers, run.spec), problem))
    return tried, None, asked


def too_few(run: Federation, state: ServerState, gathered: Gathered) -> RunError:
    why = "; ".join(f"client {f.client} {f.kind}: {f.reason}" for f in gathered.failures[:3])
    return RunError(
        f"round {state.round} had {len(gathered.answers)} usable updates, min_clients is {run.min_clients}, "
        f"in each of {run.attempts} attempts ({why}): resume once this is mended, "
        f"with a lower min_clients or with more attempts"
    )
