"""SCAFFOLD over rounds on quadratics, against a plain float64 loop: through `federate`, with unequal rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from factories import bits, fleet_of, local_of, method_of, random_adapter, tiny_spec
from torch import Tensor

from hellora.core.exchange import ClientTask, ClientUpdate, HeadPolicy, TrainSettings
from hellora.core.state import RoundReport, ServerState, owned, select
from hellora.core.types import Adapter, Budget, ClientProfile, LoraPair
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.random_layers import RandomLayers
from hellora.methods.allocators.random_ranks import RandomRanks
from hellora.methods.demands import ALL_SHARED, LASTING_COMPONENTS, OWN_COMPONENTS, PLAIN_SGD, SHARED_MODEL
from hellora.methods.dispatchers.truncate import Truncate
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.local_training.scaffold import Scaffold
from hellora.methods.strategies import Allocator, Dispatcher
from hellora.server.backend import Backend, Order
from hellora.server.federation import Federation
from hellora.server.rounds import federate

Floats = npt.NDArray[np.float64]
SPEC = tiny_spec()
START = random_adapter(SPEC, 0)
TRAIN = TrainSettings(lr=0.1, optimizer="sgd", weight_decay=0.0, steps=4)
STEPS = 4


def target(client: int) -> dict[str, Tensor]:
    """Where a client is pulled: its loss is ½ ‖θ − target‖² over what it trains."""
    return random_adapter(SPEC, 50 + client).tensors()


@dataclass(frozen=True)
class Quadratic(Backend):
    """Clients that descend on their quadratic with the rule at work."""

    fleet: Sequence[ClientProfile]

    def clients(self) -> Sequence[ClientProfile]:
        return self.fleet

    def train(self, orders: Sequence[Order]) -> Iterator[ClientUpdate]:
        return iter([self.trained(order.make()) for order in orders])

    def trained(self, task: ClientTask) -> ClientUpdate:
        rule, local, aims = Scaffold(), local_of(task, SPEC, "scaffold"), target(task.client)
        carry = rule.begin(local)
        for _ in range(STEPS):
            for name, parameter in local.parameters.items():
                rows = local.shapes.rows(name)
                aim = aims[name] if rows is None else aims[name][rows] if name[-1] == "A" else aims[name][:, rows]
                parameter.grad = parameter.detach() - aim
            carry = rule.gradients(local, carry)
            with torch.no_grad():
                for parameter in local.parameters.values():
                    assert parameter.grad is not None
                    parameter -= task.train.lr * parameter.grad
            local.stepped()
        with torch.no_grad():
            report, kept = rule.end(local, carry)
        pairs = {name: LoraPair(p.A.detach(), p.B.detach(), p.scale) for name, p in local.pairs.items()}
        head = {name: parameter.detach() for name, parameter in local.head.items()}
        (examples,) = (client.num_examples for client in self.fleet if client.id == task.client)
        return ClientUpdate(
            task.round,
            task.client,
            examples,
            Adapter(pairs, head),
            report=owned(report, rule.name),
            kept=owned(kept, rule.name),
        )


@dataclass
class Reference:
    """The algorithm, number by number in float64, with every variate whole."""

    x: dict[str, Floats]
    c: dict[str, Floats]
    of: dict[int, dict[str, Floats]]  # c_k

    def round(self, report: RoundReport, fleet: dict[int, ClientProfile], head: HeadPolicy) -> None:
        updates: list[tuple[ClientProfile, dict[str, Floats], dict[str, npt.NDArray[np.bool_]]]] = []
        for client in report.counted.updated:
            y = {name: value.copy() for name, value in self.x.items()}
            moves = {name: moving(name, value.shape, report.allocation.row(client), head) for name, value in y.items()}
            for _ in range(STEPS):
                for name, value in y.items():
                    step = value - target(client)[name].double().numpy() - self.of[client][name] + self.c[name]
                    y[name] = np.where(moves[name], value - TRAIN.lr * step, value)
            updates.append((fleet[client], y, moves))
        c_before = {name: value.copy() for name, value in self.c.items()}
        for client_profile, y, moves in updates:
            for name, value in y.items():
                mine = self.of[client_profile.id][name]
                after = mine - c_before[name] + (self.x[name] - value) / (STEPS * TRAIN.lr)
                change = np.where(moves[name], after - mine, 0.0)
                self.of[client_profile.id][name] = mine + change
                self.c[name] = self.c[name] + change / len(fleet)
        for name, value in self.x.items():
            total, weights = np.zeros_like(value), np.zeros_like(value)
            for client_profile, y, moves in updates:
                total += client_profile.num_examples * moves[name] * y[name]
                weights += client_profile.num_examples * moves[name]
            self.x[name] = np.where(weights > 0, total / np.maximum(weights, 1), value)


def moving(name: str, shape: tuple[int, ...], row: Any, head: HeadPolicy) -> npt.NDArray[np.bool_]:
    module, _, factor = name.rpartition(".lora_")
    if not module:
        return np.full(shape, head != "frozen")
    components = row[SPEC.layer_of[module]]
    return np.broadcast_to(components[:, None] if factor == "A" else components, shape)


def whole(tensors: dict[str, Tensor]) -> dict[str, Floats]:
    """Variates with 0 where there is none yet."""
    return {
        name: tensors[name].double().numpy() if name in tensors else np.zeros(tuple(t.shape))
        for name, t in START.tensors().items()
    }


CASES = [(RandomLayers(), Whole()), (RandomLayers(), Truncate()), (RandomRanks(), Whole()), (RandomRanks(), Truncate())]


@pytest.mark.parametrize(("allocator", "dispatcher"), CASES, ids=repr)
@pytest.mark.parametrize("head", ["aggregate", "frozen"])
def test_rounds_against_the_reference(allocator: Allocator, dispatcher: Dispatcher, head: HeadPolicy) -> None:
    """Clients train different layers and components, and of three two take part; c is the mean of the c_k always."""
    fleet = fleet_of(Budget(1), Budget(2, 2), Budget(3, 3))
    method = method_of(allocator, dispatcher, ParticipantMean(), local_training=(Scaffold(),), head=head)
    run = Federation(SPEC, fleet, method, rounds=5, cohort=2, seed=3, train=TRAIN)
    zeros = {name: np.zeros(tuple(tensor.shape)) for name, tensor in START.tensors().items()}
    reference = Reference(
        {name: tensor.double().numpy() for name, tensor in START.tensors().items()},
        dict(zeros),
        {client.id: dict(zeros) for client in fleet},
    )
    cohorts = set()
    before = ServerState(0, START)
    for report in federate(before, run, Quadratic(fleet)):
        assert not report.counted.rejected
        cohorts.add(report.counted.updated)
        reference.round(report, run.by_id, head)
        state = report.state
        c = whole(select(state.strategies, "local_training/scaffold"))
        own = {client.id: whole(select(state.kept.get(client.id, {}), "scaffold")) for client in fleet}
        for name, tensor in state.adapter.tensors().items():
            np.testing.assert_allclose(tensor.numpy(), reference.x[name], rtol=1e-4, atol=1e-5, err_msg=name)
            np.testing.assert_allclose(c[name], reference.c[name], rtol=1e-4, atol=1e-5, err_msg=name)
            for client, variates in own.items():
                np.testing.assert_allclose(variates[name], reference.of[client][name], rtol=1e-4, atol=1e-5)
            mean = np.mean([variates[name] for variates in own.values()], axis=0)
            np.testing.assert_allclose(c[name], mean, rtol=1e-5, atol=1e-6, err_msg=name)
        assert_components_not_trained_stay(before, report)
        before = state
    assert len(cohorts) > 1
    assert any(value.any() for value in reference.c.values())
    assert all((value == 0).all() == (head == "frozen") for n, value in reference.c.items() if n.startswith("head."))


def assert_components_not_trained_stay(before: ServerState, report: RoundReport) -> None:
    """Bit for bit: c where nobody trained, c_k of who took no part, and of who did where it trained nothing."""
    state = report.state
    for client, kept in before.kept.items():
        now = state.kept[client]
        if client not in report.counted.updated:
            assert bits(now) == bits(kept)
            continue
        for key, old in kept.items():
            still = torch.tensor(
                ~moving(key.removeprefix("scaffold/"), tuple(old.shape), report.allocation.row(client), "aggregate")
            )
            assert bits({0: now[key][still]}) == bits({0: old[still]})
    rows = [report.allocation.row(client) for client in report.counted.updated]
    old_c = select(before.strategies, "local_training/scaffold")
    for name, new in select(state.strategies, "local_training/scaffold").items():
        if name in old_c and not name.startswith("head."):
            still = torch.tensor(
                ~np.logical_or.reduce([moving(name, tuple(new.shape), row, "aggregate") for row in rows])
            )
            assert bits({0: new[still]}) == bits({0: old_c[name][still]})


def test_where_few_can_train_a_layer_c_is_the_mean_over_them() -> None:
    """Clients 10 and 13 can never train layer 0: client 16 alone counts there, and all three in layer 2."""
    fleet = fleet_of(Budget(rank=(0, 2, 2)), Budget(rank=(0, 0, 4)), Budget())
    method = method_of(RandomLayers(), Whole(), ParticipantMean(), local_training=(Scaffold(),))
    run = Federation(SPEC, fleet, method, rounds=2, cohort=3, seed=3, train=TRAIN)
    *_, last = federate(ServerState(0, START), run, Quadratic(fleet))
    c = whole(select(last.state.strategies, "local_training/scaffold"))
    own = [whole(select(last.state.kept.get(client.id, {}), "scaffold")) for client in fleet]
    able = {0: [2], 1: [0, 2], 2: [0, 1, 2]}
    for module in SPEC.modules:
        for factor in "AB":
            name = f"{module.name}.lora_{factor}"
            mean = np.mean([own[i][name] for i in able[module.layer]], axis=0)
            assert mean.any()
            np.testing.assert_allclose(c[name], mean, rtol=1e-5, atol=1e-6)


def test_the_brief_is_what_the_client_trains_of_c() -> None:
    task = replace(ClientTask(0, 0, 0, START, np.zeros((3, 4), dtype=bool), TRAIN), factors="B")
    task.trained[1, [0, 2]] = True
    shapes = local_of(task, SPEC).shapes
    fleet = fleet_of(3)
    run = Federation(SPEC, fleet, method_of(RandomLayers(), Whole(), ParticipantMean()), 1, 1, 0, TRAIN)
    c = {name: tensor + 1 for name, tensor in START.tensors().items()}
    context = replace(run.context(ServerState(0, START)), state=c)
    told = Scaffold().brief(context, fleet[0], shapes)
    expected = {f"block.1.{leaf}.lora_B": c[f"block.1.{leaf}.lora_B"][:, [0, 2]] for leaf in ("query", "value")}
    expected |= {name: tensor for name, tensor in c.items() if name.startswith("head.")}
    assert bits({n: t.contiguous() for n, t in told.items()}) == bits({n: t.contiguous() for n, t in expected.items()})
    first = Scaffold().brief(replace(context, state={}), fleet[0], shapes)
    assert first.keys() == told.keys()
    assert not any(tensor.any() for tensor in first.values())


def test_what_it_needs() -> None:
    needs = Scaffold().demands.needs
    assert {PLAIN_SGD, LASTING_COMPONENTS, OWN_COMPONENTS, ALL_SHARED, SHARED_MODEL} <= needs
