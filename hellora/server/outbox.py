"""Step 2 of a round makes the tasks, each when it is sent."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from hellora.budgets.planner import Estimate
from hellora.core.exchange import ClientTask, Named, Policy
from hellora.core.seeds import seed_for
from hellora.core.state import ServerState, select
from hellora.core.types import Allocation, ClientProfile, Mask
from hellora.methods.context import RoundContext
from hellora.methods.local import Shapes
from hellora.methods.sharing import Crossing, crossing, with_private
from hellora.server.backend import Order
from hellora.server.federation import Federation
from hellora.server.naming import naming


@dataclass(eq=False)
class Outbox:
    """An outbox makes the tasks of an attempt at a round, each when first asked for, and the same from then on."""

    run: Federation
    state: ServerState
    context: RoundContext
    allocation: Allocation
    estimated: Mapping[int, Estimate]

    def __post_init__(self) -> None:
        self.tasks: dict[int, ClientTask] = {}
        dispatcher = self.run.method.dispatcher
        with naming(dispatcher, self.state.round):
            own = self.context.of("dispatcher", self.state)
            self.seen = replace(own, state=dispatcher.begin(own))

    @property
    def orders(self) -> list[Order]:
        """Return one order per client that trains anything this round, by id."""
        rows = zip(self.allocation.clients, self.allocation.mask, strict=True)
        return [Order(client, partial(self.task, client)) for client, row in rows if self.run.asks(row)]

    def task(self, client: int) -> ClientTask:
        """Do step 2: return the task of one client."""
        if client not in self.tasks:
            self.tasks[client] = self.make(self.run.by_id[client], self.allocation.row(client))
        return self.tasks[client]

    def make(self, client: ClientProfile, row: Mask) -> ClientTask:
        run, state, method = self.run, self.state, self.run.method
        kept = state.kept.get(client.id, {})
        mine = with_private(state.adapter, select(kept, "private"))
        with naming(method.dispatcher, state.round):
            adapter = method.dispatcher.dispatch(self.seen, mine, row)
            sent = method.dispatcher.sends(row, run.spec)
        shapes = self.shapes(row)
        return ClientTask(
            round=state.round,
            rounds=run.rounds,
            client=client.id,
            seed=seed_for(run.seed, "train", state.round, client.id),
            adapter=adapter,
            trained=row,
            train=run.train,
            head=method.trained_head,
            factors=method.factors(state.round),
            shares=method.shares,
            private=method.personal and not run.simulated,
            cut=sent.cut,
            bypass=sent.bypass,
            policy=self.policy(client.id),
            spare_bytes=self.spare_bytes(client),
            brief=self.brief(client, shapes),
            kept={name: value for name, value in kept.items() if not name.startswith("private/")},
            kept_version=state.kept_versions.get(client.id),
            attempt=self.context.attempt,
            declared=method.declares(shapes),
        )

    def policy(self, client: int) -> Policy:
        """Return how a client trains its row."""
        return self.estimated[client].policy if client in self.estimated else self.run.policy

    def spare_bytes(self, client: ClientProfile) -> int | None:
        """Return what is left of a client's memory beyond its estimate and the reserve; None: no bytes are promised."""
        memory, estimate = client.budget.memory_bytes, self.estimated.get(client.id)
        if memory is None or estimate is None or self.run.planner is None:
            return None
        return max(0, memory - self.run.planner.needed_memory_bytes(estimate.cost))

    def shapes(self, row: Mask) -> Shapes:
        """Return what rules of local training may know of a task before it is made."""
        method = self.run.method
        head = {} if method.trained_head == "frozen" else self.state.adapter.head
        sizes = {name: tuple(tensor.shape) for name, tensor in head.items()}
        return Shapes(self.run.spec, row, method.factors(self.state.round), sizes)

    def brief(self, client: ClientProfile, shapes: Shapes) -> Named:
        """Return what all rules of local training tell a client."""
        told: dict[str, Named] = {}
        for rule in self.run.method.local_training:
            with naming(rule, self.state.round):
                own = self.context.of(f"local_training/{rule.name}", self.state)
                told[rule.name] = rule.brief(own, client, shapes)
        return {f"{rule}/{name}": tensor for rule, brief in told.items() for name, tensor in brief.items()}

    def crossing(self, client: int) -> Crossing:
        """Count the bytes of the client's task and of its answer, from its row alone."""
        row, method = self.allocation.row(client), self.run.method
        sent = method.dispatcher.sends(row, self.run.spec)
        declared = method.declares(self.shapes(row))
        first = client not in self.state.kept_versions and not select(self.state.kept.get(client, {}), "private")
        return crossing(self.state.adapter, sent, self.shapes(row), method, declared, self.run.wire, first)
