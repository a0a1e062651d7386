"""Floor 3: the federated round. `federate` is a generator: stopping early is `break`, a checkpoint is a line in the
caller's loop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import numpy as np

from hellora.answers import collect
from hellora.diagnostics import aggregation_error
from hellora.errors import HelloraError, InputError, RunError
from hellora.planner import Offer, Planner
from hellora.protocols import Answers, Backend, Method, RoundView, Scores
from hellora.seeds import rng_for, seed_for
from hellora.sharing import private_part, shared, travelling_bytes, with_private
from hellora.simulation import Turnout, is_available, simulated_seconds, turnout
from hellora.types import (
    Adapter,
    AdapterSpec,
    Allocation,
    Attempt,
    Budget,
    ClientProfile,
    ClientTask,
    LoraPair,
    Memory,
    Policy,
    RoundReport,
    ServerState,
    TrainSettings,
    WireFormat,
)

LayerScores = Callable[[Adapter], Scores]  # Fisher scores of a global adapter on proxy data, (layers,)
Distil = Callable[[Adapter, Answers, int], Adapter]  # (aggregated, what was aggregated, seed): its prototypes taught


@dataclass(frozen=True)
class Federation:
    """The constants of a run: who takes part, what is trained, for how long."""

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
    max_norm: float | None = None  # of a client's whole delta; an update with a larger one is rejected

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
    def able(self) -> tuple[ClientProfile, ...]:
        """The clients that can train something, by id."""
        return tuple(p for p in self.fleet if self.counts(p) and (self.planner is None or self.planner.trains(p)))

    @property
    def timed(self) -> bool:
        """True if the time of every client can be predicted."""
        return self.planner is not None and all(p.speed is not None and p.link is not None for p in self.fleet)

    @property
    def left_out(self) -> Mapping[Budget, tuple[ClientProfile, ...]]:
        """The clients for which nothing fits in bytes or seconds, by budget."""
        able = {client.id for client in self.able}
        out: dict[Budget, tuple[ClientProfile, ...]] = {}
        for client in self.fleet:
            if self.counts(client) and client.id not in able:
                out[client.budget] = (*out.get(client.budget, ()), client)
        return out

    def counts(self, client: ClientProfile) -> bool:
        """True if the client's budget in layers and ranks allows to train anything."""
        return client.budget.trains(self.spec.num_layers, self.spec.max_rank)


@contextmanager
def naming(strategy: object, round: int) -> Iterator[None]:
    """Whatever a strategy raises, other than hellora's own errors, becomes a RunError that names it."""
    try:
        yield
    except HelloraError:
        raise
    except Exception as error:
        cls, why = type(strategy), " ".join(str(error).split())
        raise RunError(
            f"round {round}: {cls.__module__}:{cls.__qualname__} raised {type(error).__name__}: {why}"
        ) from error


def sample_cohort(run: Federation, round: int, attempt: int = 0) -> tuple[ClientProfile, ...]:
    """The clients that are asked in a round: uniform without replacement among those that can train something, by id.

    Repeated attempts at a round draw anew; `run.spares` clients are asked besides `run.cohort`.
    """
    able = run.able
    order = np.argsort(rng_for(run.seed, "cohort", round, attempt).random(len(able)), kind="stable")
    return tuple(able[i] for i in sorted(order[: run.cohort + run.spares]))


def allocate(
    run: Federation, state: ServerState, layer_scores: LayerScores, attempt: int = 0
) -> tuple[Allocation, Memory]:
    """Step 1 of the state's round: sample the cohort, allocate, check every budget.

    Returns:
        Who trains what, and what the allocator wants to find again next round.

    Raises:
        InputError: the allocation does not fit a client's budget.
        RunError: the allocator raised.
    """
    cohort = sample_cohort(run, state.round, attempt)
    view = RoundView(
        round=state.round,
        rounds=run.rounds,
        cohort=cohort,
        fleet=run.fleet,
        spec=run.spec,
        seed=run.seed,
        layer_scores=lambda: layer_scores(state.adapter),
        memory=select(state.memory, "allocator"),
        reports=state.reports,
        reported_ranks=state.reported_ranks,
        planner=run.planner,
    )
    with naming(run.method.allocator, state.round):
        allocation, memory = run.method.allocator.allocate(view)
        allocation.check(cohort, run.spec)
        if run.planner is not None:
            run.planner.check(cohort, allocation.mask)
    return allocation, memory


def offers(run: Federation, allocation: Allocation) -> Mapping[int, Offer]:
    """How each client with anything to train trains it, and what that is predicted to cost; {} without a planner."""
    if run.planner is None:
        return {}
    clients = {client.id: client for client in run.fleet}
    found = {
        client: run.planner.offer(clients[client], ranks)
        for client, ranks in zip(allocation.clients, allocation.ranks, strict=True)
        if ranks.any()
    }
    return {client: offer for client, offer in found.items() if offer is not None}


def dispatch(
    run: Federation, state: ServerState, allocation: Allocation, offered: Mapping[int, Offer]
) -> list[ClientTask]:
    """Step 2: one task per client that trains anything this round, by id."""
    tasks = []
    for client in allocation.clients:
        row = allocation.row(client)
        if not row.any():
            continue
        mine = with_private(state.adapter, state.private.get(client, {}))
        with naming(run.method.dispatcher, state.round):
            adapter = run.method.dispatcher.dispatch(mine, row, run.spec)
        tasks.append(
            ClientTask(
                round=state.round,
                client=client,
                seed=seed_for(run.seed, "train", state.round, client),
                adapter=adapter,
                trained=row,
                train=run.train,
                head=run.method.head,
                report_layer_scores=run.method.allocator.needs_reports,
                factors=run.method.factors(state.round),
                bypass=run.method.dispatcher.bypasses,
                policy=offered[client].policy if client in offered else run.policy,
                spare_bytes=spare_bytes(run, client, offered),
            )
        )
    return tasks


def spare_bytes(run: Federation, client: int, offered: Mapping[int, Offer]) -> int | None:
    """What an offer leaves of a client's bytes of memory, beyond the reserve; None where none are promised."""
    memory = next(profile.budget.memory_bytes for profile in run.fleet if profile.id == client)
    if memory is None or run.planner is None or client not in offered:
        return None
    return max(0, memory - run.planner.memory(offered[client].cost))


def simulate(run: Federation, tasks: Sequence[ClientTask], offered: Mapping[int, Offer]) -> Turnout:
    """Who of the clients of `tasks` is there to answer, and how long that takes, as their profiles say. Real clients
    are all awaited."""
    if not run.simulated:
        return Turnout(tuple(tasks), tuple(tasks), ())
    fleet = {client.id: client for client in run.fleet}
    available = {task.client: is_available(fleet[task.client], task.round, run.seed) for task in tasks}
    seconds = None
    if run.timed:
        seconds = {
            task.client: simulated_seconds(
                task, fleet[task.client], offered[task.client], run.method, run.spec, run.wire
            )
            for task in tasks
        }
    return turnout(tasks, available, seconds, run.cohort, run.deadline)


def no_model(*_: object) -> Adapter:
    raise InputError("this aggregator distils: give federate() a model and public data to do it with")


def fold(
    run: Federation, state: ServerState, answers: Answers, allocator_memory: Memory, distil: Distil = no_model
) -> ServerState:
    """Step 4: aggregate, distil if asked to, take the server step, and remember what the next round needs."""
    memory = {f"allocator/{name}": value for name, value in allocator_memory.items()}
    adapter, private = state.adapter, dict(state.private)
    velocity = select(state.memory, "velocity")
    if answers:
        trained = np.logical_or.reduce([task.trained for task, _ in answers])
        seed = seed_for(run.seed, "aggregate", state.round)
        seen = shared(answers, run.method, adapter, run.spec)
        with naming(run.method.aggregator, state.round):
            aggregated = run.method.aggregator.aggregate(adapter, seen, run.spec, seed)
        if run.method.aggregator.distils:
            aggregated = distil(aggregated, answers, seed_for(run.seed, "distil", state.round))
        moving = run.method.moving(state.round)
        if run.method.aggregator.keeps_components:
            aggregated = with_still_factors(aggregated, adapter, moving)
        adapter, velocity = run.method.server_step.apply(adapter, aggregated, trained, velocity, run.spec, moving)
    for task, update in answers:
        had = private.get(update.client, {})
        if own := private_part(task, update, run.method, with_private(state.adapter, had), run.spec):
            private[update.client] = {**had, **own}
    memory |= {f"velocity/{name}": value for name, value in velocity.items()}
    reports = {u.client: u.layer_scores for _, u in answers if u.layer_scores is not None}
    ranks = {u.client: u.rank for _, u in answers if u.rank is not None}
    return ServerState(state.round + 1, adapter, memory, reports, private, ranks)


def with_still_factors(aggregated: Adapter, old: Adapter, moving: frozenset[str]) -> Adapter:
    """The aggregated adapter with each factor that does not move as it was, whatever its aggregator pads or mixes."""
    pairs = {}
    for name, pair in aggregated.pairs.items():
        still = old.pairs[name]
        pairs[name] = LoraPair(pair.A if "A" in moving else still.A, pair.B if "B" in moving else still.B, pair.scale)
    return replace(aggregated, pairs=pairs)


def select(memory: Memory, owner: str) -> Memory:
    """The part of the state's memory that belongs to one owner, under the owner's own names."""
    return {key.removeprefix(f"{owner}/"): value for key, value in memory.items() if key.startswith(f"{owner}/")}


def federate(
    state: ServerState, run: Federation, backend: Backend, layer_scores: LayerScores, distil: Distil = no_model
) -> Iterator[RoundReport]:
    """Run the rounds from `state.round` on; yield a report after each. The same for every backend.

    A round with fewer than `min_clients` usable updates is repeated with another cohort. A round whose
    allocation asks nobody to train (Exclusive, a cohort of weak clients) ends unchanged.

    Args:
        state: the state to go on from; each report has the next one
        run: what stays the same in all rounds
        backend: where the clients are
        layer_scores: Fisher scores (layers,) of an adapter on proxy data; called only by strategies that ask
        distil: what teaches prototypes on public data; called only by aggregators that distil

    Raises:
        RunError: a round failed `attempts` times, or a strategy raised; the last yielded state is the one to resume
            from.
    """
    while state.round < run.rounds:
        attempts: list[Attempt] = []
        for number in range(run.attempts):
            allocation, allocator_memory = allocate(run, state, layer_scores, number)
            offered = offers(run, allocation)
            tasks = dispatch(run, state, allocation, offered)
            there = simulate(run, tasks, offered)
            heard = chain(there.missing, backend.train(there.awaited))
            answers, failures, arrived, dropped = collect(tasks, heard, run.spec, run.fleet, run.max_norm)
            factors = run.method.factors(state.round)
            attempts.append(
                Attempt(
                    cohort=allocation.clients,
                    updated=tuple(update.client for _, update in answers),
                    missing={f.client: f.reason for f in failures if f.kind == "missing"},
                    rejected={f.client: f.reason for f in failures if f.kind == "rejected"},
                    downlink_bytes={
                        task.client: travelling_bytes(task.adapter, run.method, "both", run.wire)
                        for task in there.reached
                    },
                    uplink_bytes={
                        client: travelling_bytes(arrived[client].adapter, run.method, factors, run.wire)
                        for client in sorted(arrived)
                    },
                    simulated_seconds=there.lasted,
                    dropped=dropped,
                )
            )
            if not tasks or len(answers) >= run.min_clients:
                break
        else:
            why = "; ".join(f"client {f.client} {f.kind}: {f.reason}" for f in failures[:3])
            raise RunError(
                f"round {state.round} had {len(answers)} usable updates, min_clients is {run.min_clients}, "
                f"in each of {run.attempts} attempts ({why}): resume once this is mended, "
                f"with a lower min_clients or with more attempts"
            )
        error = aggregation_error(answers, run.spec)
        finished, state = state.round, fold(run, state, answers, allocator_memory, distil)
        policies = {task.client: task.policy for task in tasks}
        metrics = client_metrics(answers, offered, there.seconds)
        yield RoundReport(finished, state, allocation, metrics, tuple(attempts), error, policies)


def client_metrics(
    answers: Answers, offered: Mapping[int, Offer], simulated: Mapping[int, float]
) -> Mapping[int, Mapping[str, float]]:
    """What each counted client measured, by id, and what was predicted for it."""
    metrics: dict[int, Mapping[str, float]] = {}
    for _, update in answers:
        predicted: dict[str, float] = {}
        if (offer := offered.get(update.client)) is not None:
            predicted["predicted_peak_bytes"] = offer.cost.peak_bytes
            predicted |= {} if offer.seconds is None else {"predicted_seconds": round(offer.seconds, 3)}
        if (seconds := simulated.get(update.client)) is not None:
            predicted["simulated_seconds"] = round(seconds, 3)
        metrics[update.client] = {**update.metrics, "examples": update.num_examples, **predicted}
    return metrics
