"""Tasks are made when they are sent, once each; who is asked is checked; every strategy finds its own state again."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from factories import FakeBackend, Lent, bits, fleet_of, method_of, random_adapter, tiny_spec

from hellora.core.errors import InputError, RunError
from hellora.core.exchange import TensorSpec, TrainSettings, WireFormat
from hellora.core.state import ServerState, StrategyState
from hellora.core.types import Adapter, Allocation, ClientProfile, Mask
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.everything import Everything
from hellora.methods.allocators.random_ranks import RandomRanks
from hellora.methods.context import RoundContext
from hellora.methods.demands import PROXY_DATA, Demands
from hellora.methods.dispatchers.bypass import Bypass
from hellora.methods.dispatchers.truncate import Truncate
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.local_training.plain import Plain
from hellora.methods.local_training.scaffold import Scaffold
from hellora.methods.samplers.uniform import Uniform
from hellora.methods.server_optimizers.average import Average
from hellora.methods.sharing import crossing_bytes
from hellora.methods.strategies import Answers, Dispatcher, Sampler
from hellora.server.federation import Federation
from hellora.server.outbox import Outbox
from hellora.server.rounds import allocate, federate

SPEC = tiny_spec()
START = ServerState(0, random_adapter(SPEC, seed=1000))
FLEET = fleet_of(1, 2, 3, 0)


def federation(**others: Any) -> Federation:
    strategies = {"allocator": RandomRanks(), "dispatcher": Whole(), "aggregator": ParticipantMean(), **others}
    return Federation(SPEC, FLEET, method_of(**strategies), rounds=3, cohort=3, seed=7, train=TrainSettings())


def outbox_of(run: Federation) -> Outbox:
    context, allocation, _ = allocate(run, START, None)
    return Outbox(run, START, context, allocation, {})


# ---------------------------------------------------------------------------------------------------------- the tasks


def test_a_task_is_made_when_it_is_sent_and_once() -> None:
    made: list[int] = []

    class Counting(Whole):
        def dispatch(self, context: RoundContext, adapter: Adapter, trained: Mask) -> Adapter:
            made.append(int(trained.any(axis=1).sum()))
            return super().dispatch(context, adapter, trained)

    outbox = outbox_of(federation(dispatcher=Counting()))
    orders = outbox.orders
    assert [order.client for order in orders] == [10, 13, 16]
    assert not made
    first = orders[1].make()
    assert made == [2]
    assert orders[1].make() is first is outbox.orders[1].make()
    assert [order.make().client for order in orders] == [10, 13, 16]
    assert made == [2, 1, 3]


def test_a_task_knows_where_in_the_run_it_is() -> None:
    """So that a learning rate can follow a schedule over all rounds."""
    run = federation()
    later = replace(START, round=2)
    context, allocation, _ = allocate(run, later, None)
    (task, *_) = [order.make() for order in Outbox(run, later, context, allocation, {}).orders]
    assert (task.round, task.rounds) == (2, 3)


@pytest.mark.parametrize("dispatcher", [Whole(), Truncate(), Bypass()], ids=repr)
@pytest.mark.parametrize("head", ["aggregate", "frozen", "local"])
@pytest.mark.parametrize("wire", ["fp32", "int8"])
def test_what_crosses_is_known_from_the_row_alone(dispatcher: Dispatcher, head: Any, wire: WireFormat) -> None:
    """And is what the task that is made then has, and what its answer has."""
    run = replace(federation(dispatcher=dispatcher, head=head, local_training=(Scaffold(),)), wire=wire)
    outbox, backend = outbox_of(run), FakeBackend(FLEET, SPEC)
    for order in outbox.orders:
        known = outbox.crossing(order.client)
        task = order.make()
        down = {name: TensorSpec.of(tensor) for name, tensor in task.adapter.tensors().items()}
        brief = sum(tensor.nbytes for tensor in task.brief.values())
        first_head = 4 * 8 if head == "local" else 0  # of no wire format
        assert known.down == crossing_bytes(down, run.method, wire) + brief + first_head
        up = {name: TensorSpec.of(tensor) for name, tensor in backend.trained(task).adapter.tensors().items()}
        assert known.up == crossing_bytes(up, run.method, wire) + task.declared.bytes_up
        assert brief > 0


def test_a_dispatcher_begins_once_in_a_round_and_its_state_is_kept() -> None:
    class Counting(Whole):
        def begin(self, context: RoundContext) -> StrategyState:
            return {"rounds": context.state.get("rounds", torch.tensor(0)) + 1}

        def dispatch(self, context: RoundContext, adapter: Adapter, trained: Mask) -> Adapter:
            assert int(context.state["rounds"]) == context.round + 1
            return adapter

    reports = list(federate(START, federation(dispatcher=Counting()), FakeBackend(FLEET, SPEC)))
    assert [int(report.state.strategies["dispatcher/rounds"]) for report in reports] == [1, 2, 3]


# ------------------------------------------------------------------------------------------------------- who is asked


@dataclass(frozen=True)
class Wrong(Sampler):
    """Asks the clients of these places in the fleet."""

    places: tuple[int, ...] = ()

    def sample(self, context: RoundContext) -> tuple[tuple[ClientProfile, ...], StrategyState]:
        return tuple(context.fleet[i] for i in self.places), {}


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ((0, 3), "they must be able to train, each once, by id"),
        ((1, 0), "they must be able to train, each once, by id"),
        ((1, 1), "they must be able to train, each once, by id"),
        ((0, 1, 2), "chose 3 clients, and 2 are to be asked"),
    ],
)
def test_a_sampler_that_chooses_wrongly_is_refused(places: tuple[int, ...], message: str) -> None:
    run = replace(federation(sampler=Wrong(places)), cohort=2)
    with pytest.raises(InputError, match=message):
        next(federate(START, run, FakeBackend(FLEET, SPEC)))


# ------------------------------------------------------------------------------------------------ states and mistakes


def test_every_strategy_finds_its_own_state_again() -> None:
    """Each counts the rounds under the same name; nobody sees what another remembers."""

    def counted(context: RoundContext) -> StrategyState:
        assert context.state.keys() == ({"n"} if context.round else set())
        assert int(context.state.get("n", 0)) == context.round
        return {"n": torch.tensor(context.round + 1)}

    class S(Uniform):
        def sample(self, context: RoundContext) -> tuple[tuple[ClientProfile, ...], StrategyState]:
            return super().sample(context)[0], counted(context)

    class A(Everything):
        def allocate(self, context: RoundContext) -> tuple[Allocation, StrategyState]:
            return super().allocate(context)[0], counted(context)

    class D(Whole):
        def begin(self, context: RoundContext) -> StrategyState:
            return counted(context)

    class L(Plain):
        def remember(self, context: RoundContext) -> StrategyState:
            assert context.trained.keys() == {10, 13, 16}
            return counted(context)

    class G(ParticipantMean):
        def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
            return super().aggregate(context, answers)[0], counted(context)

    class O(Average):  # noqa: E742
        def step(self, context: RoundContext, *others: Any) -> tuple[Adapter, StrategyState]:
            return super().step(context, *others)[0], counted(context)

    run = federation(
        sampler=S(), allocator=A(), dispatcher=D(), local_training=(L(),), aggregator=G(), server_optimizer=O()
    )
    *_, last = federate(START, run, FakeBackend(FLEET, SPEC))
    kinds = ["sampler", "allocator", "dispatcher", f"local_training/{L().name}", "aggregator", "server_optimizer"]
    assert bits(last.state.strategies) == bits({f"{kind}/n": torch.tensor(3) for kind in kinds})


def test_what_a_strategy_raises_names_it() -> None:
    class Broken(Plain):
        def remember(self, context: RoundContext) -> StrategyState:
            raise KeyError("x")

    run = federation(local_training=(Broken(),))
    with pytest.raises(RunError, match=r"^round 0: .*Broken raised KeyError: 'x'$"):
        next(federate(START, run, FakeBackend(FLEET, SPEC)))


def test_a_model_is_lent_to_who_needs_its_data_and_to_nobody_else() -> None:
    lent, seen = Lent(), []

    class Asking(Everything):
        def allocate(self, context: RoundContext) -> tuple[Allocation, StrategyState]:
            seen.append(context.lent)
            return super().allocate(context)

    class Needing(Asking):
        @property
        def demands(self) -> Demands:
            return Demands(needs=frozenset({PROXY_DATA}))

    for allocator in (Asking(), Needing()):
        next(federate(START, federation(allocator=allocator), FakeBackend(FLEET, SPEC), lent))
    assert seen == [None, lent]
