"""Solve the head in closed form, in rounds of sums over all clients: `methods.passes` says in which.

All clients are asked, in waves of the cohort's size, by id; also those whose budget allows no training, for a sum takes
a forward pass only. Who is missed is on record, and asked again when the head is solved again. Nothing of it depends on
who answers first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from hellora.budgets.planner import Estimate, in_words
from hellora.core.errors import RunError
from hellora.core.exchange import ClientFailure, ClientTask, Declared, Named, TensorSpec
from hellora.core.seeds import seed_for
from hellora.core.state import Attempt, ServerState, owned, select
from hellora.core.sums import Grid, scales_of
from hellora.core.types import Adapter, ClientProfile
from hellora.core.units import in_bytes
from hellora.methods.closed_form import (
    LOGIT_SCALES,
    MOST_EXAMPLES,
    HeadShape,
    linear_names,
    problem_with_sums,
    projection,
    summed,
)
from hellora.methods.passes import EXPONENTS, LEFT_OUT, LOSSES, declared, passes_of
from hellora.methods.sharing import Crossing, crossing_bytes
from hellora.server.answers import Gathered, gather
from hellora.server.backend import Backend, Order
from hellora.server.federation import Federation
from hellora.server.naming import naming
from hellora.server.simulation import simulate

SOLVED = "start/solved"  # of a state's strategies: the round before which its head was solved last
RIGHT = "start/right"  # (2,): about which part of the examples it was right without them, first and last (or −1)
FIRST = "start/first/"  # the head that was solved first

Solved = tuple[ServerState, tuple[Attempt, ...]]  # the state, and who was asked, wave by wave


def solved_first(run: Federation, state: ServerState, backend: Backend) -> Solved:
    """Return the state before round 0 with its head solved; the state as it is, where that is done or not asked for."""
    if state.round or not run.method.solves_first or SOLVED in state.strategies:
        return state, ()
    return solved(run, state, backend)


def solved_after(run: Federation, state: ServerState, backend: Backend) -> Solved:
    """Return the state after a round with its head solved again, where the method asks for that."""
    return solved(run, state, backend) if run.method.solves_after(state.round - 1, run.rounds) else (state, ())


def solved(run: Federation, state: ServerState, backend: Backend) -> Solved:
    """Return the state with its head solved on the features of its adapter.

    Raises:
        InputError: the head is not linear; RunError: nobody answered in one of the passes, or there is no solution.
    """
    solving = Solving(run, state, backend)
    with naming(run.method.start, state.round):
        weight = solving.weight()
    head = dict(state.adapter.head)
    names = names_of(head)
    parts = (weight[:, : head[names[0]].shape[1]], weight[:, -1])
    head |= {name: part.to(head[name].dtype).contiguous() for name, part in zip(names, parts, strict=False)}
    strategies = {**state.strategies, SOLVED: torch.tensor(state.round)}
    after = replace(state, adapter=replace(state.adapter, head=head), strategies=strategies)
    if LEFT_OUT in solving.found:
        counts = solving.found[LEFT_OUT]
        after = with_the_better(run, after, int(counts["right"]) / int(counts["examples"]))
    return after, tuple(solving.attempts)


def with_the_better(run: Federation, state: ServerState, right: float) -> ServerState:
    """Remember about which part of the examples a head is right without them. After the last round, put back what the
    run began with (an adapter that does nothing, and the head that was solved first) where that was right more often.
    """
    known, adapter = state.strategies, state.adapter
    if RIGHT not in known:
        first = owned(adapter.head, FIRST.rstrip("/"))
        rates = torch.tensor([right, -1.0], dtype=torch.float64)
        return replace(state, strategies={**known, RIGHT: rates, **first})
    rates = torch.tensor([float(known[RIGHT][0]), right], dtype=torch.float64)
    if state.round == run.rounds and rates[1] < rates[0]:
        pairs = {name: replace(pair, B=torch.zeros_like(pair.B)) for name, pair in adapter.pairs.items()}
        adapter = replace(adapter, pairs=pairs, residual={}, head=select(known, FIRST.rstrip("/")))
    return replace(state, adapter=adapter, strategies={**known, RIGHT: rates})


def names_of(head: Named) -> tuple[str, ...]:
    """Return the names of a linear head's weight and, if it has one, its bias."""
    return linear_names({name: tensor.shape for name, tensor in head.items()})


@dataclass(eq=False)
class Solving:
    """A head that is being solved: what the passes so far brought, and who was asked."""

    run: Federation
    state: ServerState
    backend: Backend
    found: dict[str, Named] = field(default_factory=dict)  # by pass
    attempts: list[Attempt] = field(default_factory=list)

    # ------------------------------------------------------------------------------------------------- what is solved

    @cached_property
    def features(self) -> int:
        """Count the numbers that the head is given of an example."""
        head = self.state.adapter.head
        return head[names_of(head)[0]].shape[1]

    @cached_property
    def columns(self) -> int:
        """Return to how many numbers features are projected; 0 = they are not."""
        wanted = self.run.method.projection
        return wanted if wanted < self.features else 0

    @cached_property
    def shape(self) -> HeadShape:
        """Return the shape of the head as it is solved: on projected features, where they are."""
        head = self.state.adapter.head
        names = names_of(head)
        return HeadShape(self.columns or self.features, len(head[names[0]]), len(names) > 1, self.run.targets)

    @cached_property
    def examples(self) -> int:
        """Count the examples of all clients, as they said.

        Raises:
            RunError: they are more than can be summed exactly; or none.
        """
        sizes = {client.id: client.num_examples for client in self.run.fleet}
        if not 0 < (total := sum(sizes.values())) <= MOST_EXAMPLES:
            most = max(sizes, key=lambda client: sizes[client])
            raise RunError(
                f"clients say that they have {total} examples, {sizes[most]} of them client {most}, and the sums of 1 "
                f"to {MOST_EXAMPLES} are exact: leave out who has not what it says, or set method.start = 'none'"
            )
        return total

    @property
    def projection_seed(self) -> int:
        return seed_for(self.run.seed, "projection")

    @property
    def grid(self) -> Grid:
        """Return the public grid; before it is known, and where a start needs none, one that nothing is put on."""
        if EXPONENTS not in self.found:
            return Grid(0, torch.ones(self.shape.on_grid, dtype=torch.float64))
        return Grid.for_rows(self.examples, scales_of(self.found[EXPONENTS][EXPONENTS]))

    def weight(self) -> Tensor:
        """Return the head, (classes, features + 1) in float64; without the last column where it has no bias."""
        method, weight, _ = self.run.method, torch.empty(0), self.examples
        for step in [*passes_of(method, self.run.targets), ""]:
            if step in (LOSSES, LEFT_OUT, ""):  # all sums are there
                weight = method.start.solve(self.shape, self.grid, self.found)
            if step:
                self.found[step] = self.asked(step, weight)
        scale = 1.0 if method.logit_scale == "auto" else method.logit_scale  # numbers are as they are
        if LOSSES in self.found:
            scale = LOGIT_SCALES[int(self.found[LOSSES]["losses"].argmin())]
        if self.columns:
            down = projection(self.projection_seed, self.columns, self.features)
            weight = torch.cat([weight[:, : self.columns] @ down, weight[:, self.columns :]], dim=1)
        return scale * weight

    # --------------------------------------------------------------------------------------------------- who is asked

    def asked(self, step: str, weight: Tensor) -> Named:
        """Ask every client in one pass, wave by wave; return what all reports come to."""
        start, run, reports = self.run.method.start, self.run, dict[int, Named]()
        own = step in start.passes
        brief = dict(start.brief(step, self.found)) if own else {}
        brief |= {"projection": torch.tensor([self.projection_seed, self.columns])} if self.columns else {}
        if EXPONENTS in self.found:
            brief |= {"bits": torch.tensor(self.grid.bits), "scales": self.grid.scales}
        brief |= {"weight": weight} if step in (LOSSES, LEFT_OUT) else {}
        brief |= {"inverse": start.inverse(self.shape, self.grid, self.found)} if step == LEFT_OUT else {}
        clients = [client for client in run.fleet if client.num_examples]
        for first in range(0, len(clients), run.cohort):
            reports |= self.wave(step, clients[first : first + run.cohort], owned(brief, "start"))
        if not reports:
            last = self.attempts[-1]
            why = "; ".join(
                f"client {client}: {why}" for client, why in [*{**last.missing, **last.rejected}.items()][:3]
            )
            raise RunError(f"no client summed its features, in the pass {step!r} ({why}): resume once this is mended")
        by_id = {client: reports[client] for client in sorted(reports)}
        return start.gather(step, by_id) if own else summed(by_id)

    def wave(self, step: str, clients: Sequence[ClientProfile], brief: Named) -> dict[int, Named]:
        """Ask some clients; return the reports by id, and put on record who was asked and who is missed."""
        run, start, grid = self.run, self.run.method.start, self.grid
        wanted = {
            client.id: declared(start, step, self.shape, client.num_examples, grid, bool(self.columns))
            for client in clients
        }
        estimated = self.estimates(clients, wanted)
        too_dear = [failure for client in clients for failure in self.too_dear(client, estimated)]
        able = [client for client in clients if client.id not in {failure.client for failure in too_dear}]
        make = partial(self.task, step, brief, len(self.attempts))
        orders = [Order(client.id, lru_cache(partial(make, client, wanted[client.id]))) for client in able]
        crossing = {client.id: self.crossing(wanted[client.id]) for client in able}
        there = simulate(run, self.state.round, orders, estimated, crossing)
        heard = gather(run, orders, [*too_dear, *there.missing], self.backend.train(there.awaited))
        gathered = heard.without(self.no_sums(heard))
        self.attempts.append(gathered.record([client.id for client in clients], there, crossing))
        return {update.client: select(update.report, "start") for _, update in gathered.answers}

    def no_sums(self, heard: Gathered) -> dict[int, str]:
        """Return who answered with what cannot be sums of features, each with why."""
        found = {
            update.client: problem_with_sums(select(update.report, "start"), update.num_examples, self.shape.columns)
            for _, update in heard.answers
        }
        return {client: why for client, why in found.items() if why}

    def task(self, step: str, brief: Named, wave: int, client: ClientProfile, named: Declared) -> ClientTask:
        """Make the task in which a client sums. Its attempt is below 0: no training's answer is taken for it."""
        run, spec = self.run, self.run.spec
        return ClientTask(
            round=self.state.round,
            client=client.id,
            seed=seed_for(run.seed, "sums", self.state.round, client.id),
            adapter=self.adapter,
            trained=np.zeros((spec.num_layers, spec.max_rank), dtype=bool),
            train=run.train,
            head="frozen",
            brief=brief,
            attempt=-1 - wave,
            sums=step,
            declared=named,
        )

    @cached_property
    def adapter(self) -> Adapter:
        """Return what clients need for the features: nothing as long as it does nothing, and never a head."""
        adapter = self.state.adapter
        acts = bool(adapter.residual) or any(bool(pair.B.any()) for pair in adapter.pairs.values())
        return replace(adapter, head={}, prototypes={}) if acts else Adapter({})

    def crossing(self, named: Declared) -> Crossing:
        """Count the bytes of a task and of its answer."""
        tensors = {name: TensorSpec.of(tensor) for name, tensor in self.adapter.tensors().items()}
        down = crossing_bytes(tensors, self.run.method, self.run.wire) + named.bytes_down
        return Crossing(down, named.bytes_up)

    def estimates(self, clients: Sequence[ClientProfile], wanted: Mapping[int, Declared]) -> dict[int, Estimate]:
        """Return what a pass costs each client; {} without a planner."""
        planner = self.run.planner
        if planner is None:
            return {}
        return {c.id: planner.estimate_of_sums(c, wanted[c.id], self.shape.columns) for c in clients}

    def too_dear(self, client: ClientProfile, estimated: Mapping[int, Estimate]) -> list[ClientFailure]:
        """Return why a client's budget allows no sums, if so."""
        planner = self.run.planner
        if planner is None or planner.within(client.budget, estimate := estimated[client.id]):
            return []
        cost, time = estimate.cost, "" if estimate.seconds is None else f", {estimate.seconds:.3g} s"
        takes = f"memory {in_bytes(planner.needed_memory_bytes(cost))}, uplink {in_bytes(cost.uplink_bytes)}{time}"
        return [ClientFailure(client.id, "missing", f"a sum takes {takes}; its budget is {in_words(client.budget)}")]
