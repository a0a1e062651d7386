"""FedDyn over rounds on quadratics, both its parts, against a plain float64 loop: through `federate`, unequal rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from factories import bits, fleet_of, local_of, method_of, random_adapter, tiny_spec
from torch import Tensor

from hellora.core.exchange import ClientTask, ClientUpdate, Declared, HeadPolicy, TrainSettings
from hellora.core.state import RoundReport, ServerState, owned, select
from hellora.core.types import Adapter, Budget, ClientProfile, LoraPair, Mask
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.everything import Everything
from hellora.methods.allocators.random_layers import RandomLayers
from hellora.methods.allocators.random_ranks import RandomRanks
from hellora.methods.demands import (
    ALL_SHARED,
    DRIFT_KEPT,
    DRIFT_TAKEN_BACK,
    LASTING_COMPONENTS,
    OWN_COMPONENTS,
    PLAIN_SGD,
)
from hellora.methods.dispatchers.truncate import Truncate
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.local import Shapes
from hellora.methods.local_training.fed_dyn import FedDyn
from hellora.methods.local_training.plain import Plain
from hellora.methods.server_optimizers.average import Average
from hellora.methods.server_optimizers.fed_dyn import FedDyn as FedDynServer
from hellora.methods.strategies import Allocator, Dispatcher, LocalTraining
from hellora.server.backend import Backend, Order
from hellora.server.federation import Federation
from hellora.server.rounds import federate

Floats = npt.NDArray[np.float64]
SPEC = tiny_spec()
START = random_adapter(SPEC, 0)
STEPS, LR, ALPHA = 4, 0.1, 0.3
TRAIN = TrainSettings(lr=LR, optimizer="sgd", weight_decay=0.0, steps=STEPS)


def target(client: int) -> dict[str, Tensor]:
    """Where a client is pulled: its loss is ½ c ‖θ − target‖² over what it trains, with its own c."""
    return random_adapter(SPEC, 50 + client).tensors()


def steepness(client: int) -> float:
    return 0.5 + (client % 5)


@dataclass(frozen=True)
class Quadratic(Backend):
    """Clients that descend on their quadratic, with a rule's penalty."""

    fleet: Sequence[ClientProfile]
    rule: LocalTraining
    steps: int = STEPS

    def clients(self) -> Sequence[ClientProfile]:
        return self.fleet

    def train(self, orders: Sequence[Order]) -> Iterator[ClientUpdate]:
        return iter([self.trained(order.make()) for order in orders])

    def trained(self, task: ClientTask) -> ClientUpdate:
        local, aims = local_of(task, SPEC, "fed_dyn"), target(task.client)
        for _ in range(self.steps):
            for name, parameter in local.parameters.items():
                rows = local.shapes.rows(name)
                aim = aims[name] if rows is None else aims[name][rows] if name[-1] == "A" else aims[name][:, rows]
                parameter.grad = steepness(task.client) * (parameter.detach() - aim)
            if (penalty := self.rule.penalty(local)) is not None:
                torch.autograd.backward(penalty)
            with torch.no_grad():
                for parameter in local.parameters.values():
                    assert parameter.grad is not None
                    parameter -= task.train.lr * parameter.grad
        with torch.no_grad():
            report, kept = self.rule.end(local, None)
        assert not report
        pairs = {name: LoraPair(p.A.detach(), p.B.detach(), p.scale) for name, p in local.pairs.items()}
        head = {name: parameter.detach() for name, parameter in local.head.items()}
        (examples,) = (client.num_examples for client in self.fleet if client.id == task.client)
        adapter, kept = Adapter(pairs, head), owned(kept, self.rule.name)
        return ClientUpdate(task.round, task.client, examples, adapter, kept=kept)


@dataclass
class Reference:
    """The algorithm as it is written, with h and every h_k whole, in float64."""

    x: dict[str, Floats]
    h: dict[str, Floats]
    of: dict[int, dict[str, Floats]]  # h_k

    def round(self, report: RoundReport, fleet: Mapping[int, ClientProfile], head: HeadPolicy) -> None:
        trained: list[tuple[ClientProfile, dict[str, Floats], dict[str, npt.NDArray[np.bool_]]]] = []
        for client in report.counted.updated:
            y = {name: value.copy() for name, value in self.x.items()}
            moves = {name: moving(name, value.shape, report.allocation.row(client), head) for name, value in y.items()}
            for _ in range(STEPS):
                for name, value in y.items():
                    gradient = steepness(client) * (value - target(client)[name].double().numpy())
                    gradient = gradient - self.of[client][name] + ALPHA * (value - self.x[name])
                    y[name] = np.where(moves[name], value - LR * gradient, value)
            trained.append((fleet[client], y, moves))
        for name, value in self.x.items():
            total, weights, gone = np.zeros_like(value), np.zeros_like(value), np.zeros_like(value)
            for profile, y, moves in trained:
                total += profile.num_examples * moves[name] * y[name]
                weights += profile.num_examples * moves[name]
                gone += y[name] - value
                self.of[profile.id][name] = self.of[profile.id][name] - ALPHA * (y[name] - value)
            self.h[name] = self.h[name] - ALPHA / len(fleet) * gone
            step = total / np.maximum(weights, 1) - self.h[name] / ALPHA
            self.x[name] = np.where(weights > 0, step, value)


def moving(name: str, shape: tuple[int, ...], row: Mask, head: HeadPolicy) -> npt.NDArray[np.bool_]:
    module, _, factor = name.rpartition(".lora_")
    if not module:
        return np.full(shape, head != "frozen")
    components = row[SPEC.layer_of[module]]
    return np.broadcast_to(components[:, None] if factor == "A" else components, shape)


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Floats]:
    """Tensors with 0 where there is none yet."""
    return {
        name: tensors[name].double().numpy() if name in tensors else np.zeros(tuple(t.shape))
        for name, t in START.tensors().items()
    }


def run_of(
    allocator: Allocator,
    dispatcher: Dispatcher,
    fleet: tuple[ClientProfile, ...],
    rounds: int,
    cohort: int,
    **more: Any,
) -> Federation:
    parts = {"local_training": (FedDyn(ALPHA),), "server_optimizer": FedDynServer(), **more}
    method = method_of(allocator, dispatcher, ParticipantMean(), **parts)
    return Federation(SPEC, fleet, method, rounds=rounds, cohort=cohort, seed=3, train=TRAIN)


CASES = [(RandomLayers(), Whole()), (RandomLayers(), Truncate()), (RandomRanks(), Whole()), (RandomRanks(), Truncate())]


@pytest.mark.parametrize(("allocator", "dispatcher"), CASES, ids=repr)
@pytest.mark.parametrize("head", ["aggregate", "frozen"])
def test_rounds_against_the_reference(allocator: Allocator, dispatcher: Dispatcher, head: HeadPolicy) -> None:
    """Clients train different layers and components, and of three two take part; h is the mean of the h_k always."""
    fleet = fleet_of(Budget(1), Budget(2, 2), Budget(3, 3))
    run = run_of(allocator, dispatcher, fleet, 5, 2, head=head)
    zeros = {name: np.zeros(tuple(tensor.shape)) for name, tensor in START.tensors().items()}
    start = {name: tensor.double().numpy() for name, tensor in START.tensors().items()}
    reference = Reference(start, dict(zeros), {client.id: dict(zeros) for client in fleet})
    cohorts, before = set(), ServerState(0, START)
    for report in federate(before, run, Quadratic(fleet, FedDyn(ALPHA))):
        assert not report.counted.rejected
        cohorts.add(report.counted.updated)
        reference.round(report, run.by_id, head)
        state = report.state
        g = whole(select(state.strategies, "server_optimizer"))
        own = [whole(select(state.kept.get(client.id, {}), "fed_dyn")) for client in fleet]
        for name, tensor in state.adapter.tensors().items():
            np.testing.assert_allclose(tensor.numpy(), reference.x[name], rtol=1e-4, atol=1e-5, err_msg=name)
            np.testing.assert_allclose(-ALPHA * g[name], reference.h[name], rtol=1e-4, atol=1e-5, err_msg=name)
            for mine, client in zip(own, fleet, strict=True):
                np.testing.assert_allclose(mine[name], reference.of[client.id][name], rtol=1e-4, atol=1e-5)
            mean = np.mean([mine[name] for mine in own], axis=0)
            np.testing.assert_allclose(-ALPHA * g[name], mean, rtol=1e-5, atol=1e-6, err_msg=name)
        assert_segments_without_trainers_stay(before, report)
        before = state
    assert len(cohorts) > 1
    assert all((value == 0).all() == (head == "frozen") for n, value in reference.h.items() if n.startswith("head."))


def assert_segments_without_trainers_stay(before: ServerState, report: RoundReport) -> None:
    """Bit for bit: the adapter and g where nobody trained, h_k where that client did not."""
    rows = {client: report.allocation.row(client) for client in report.counted.updated}
    old_g, now_g = (select(state.strategies, "server_optimizer") for state in (before, report.state))
    for old, now in ((before.adapter.tensors(), report.state.adapter.tensors()), (old_g, now_g)):
        for name, tensor in old.items():
            if not name.startswith("head."):
                each = [moving(name, tuple(tensor.shape), row, "aggregate") for row in rows.values()]
                still = torch.tensor(~np.logical_or.reduce(each))
                assert bits({0: now[name][still]}) == bits({0: tensor[still]}), name
    for client, kept in before.kept.items():
        for key, tensor in kept.items():
            name = key.removeprefix("fed_dyn/")
            row = rows.get(client, np.zeros((SPEC.num_layers, SPEC.max_rank), dtype=bool))
            if client not in rows or not name.startswith("head."):
                still = torch.tensor(~moving(name, tuple(tensor.shape), row, "frozen"))
                assert bits({0: report.state.kept[client][key][still]}) == bits({0: tensor[still]}), name


def test_where_few_can_train_a_layer_the_drift_is_divided_by_them() -> None:
    """Clients 10 and 13 can never train layer 0: client 16 alone counts there, and all three in layer 2."""
    fleet = fleet_of(Budget(rank=(0, 2, 2)), Budget(rank=(0, 0, 4)), Budget())
    *_, last = federate(
        ServerState(0, START), run_of(RandomLayers(), Whole(), fleet, 2, 3), Quadratic(fleet, FedDyn(ALPHA))
    )
    g = whole(select(last.state.strategies, "server_optimizer"))
    own = [whole(select(last.state.kept.get(client.id, {}), "fed_dyn")) for client in fleet]
    able = {0: [2], 1: [0, 2], 2: [0, 1, 2]}
    for module in SPEC.modules:
        for factor in "AB":
            name = f"{module.name}.lora_{factor}"
            mean = np.mean([own[i][name] for i in able[module.layer]], axis=0)
            assert mean.any()
            np.testing.assert_allclose(-ALPHA * g[name], mean, rtol=1e-5, atol=1e-6)


def test_clients_of_unequal_pull_end_where_the_sum_of_their_losses_is_least() -> None:
    """With c_k = 0.5, 3.5 and 1.5 that is Σ c_k target_k / Σ c_k; the plain mean of the same clients stays off it."""
    fleet = tuple(ClientProfile(i, 10) for i in (10, 13, 16))
    c = {client.id: steepness(client.id) for client in fleet}
    assert sorted(c.values()) == [0.5, 1.5, 3.5]
    distances = {}
    for rule, optimizer in ((FedDyn(1.0), FedDynServer()), (Plain(), Average())):
        more = {"local_training": (rule,), "server_optimizer": optimizer}
        run = run_of(Everything(), Whole(), fleet, 60, 3, **more)
        *_, last = federate(ServerState(0, START), run, Quadratic(fleet, rule, steps=20))
        off = 0.0
        for name, tensor in last.state.adapter.tensors().items():
            best = sum(c[k] * target(k)[name].double() for k in c) / sum(c.values())
            off = max(off, float((tensor.double() - best).abs().max()))
        distances[rule.name] = off
    assert distances["fed_dyn"] < 1e-3 < 0.1 < distances["plain"]


def test_the_penalty_and_its_gradient_by_hand() -> None:
    """At the start −h_k; after a move of 1 everywhere −h_k + α, with the value Σ (α/2 − h_k)."""
    task = ClientTask(0, 0, 0, START, np.zeros((3, 4), dtype=bool), TRAIN)
    task.trained[1, [0, 2]] = True
    h = {f"fed_dyn/{name}": torch.full_like(tensor, 0.25) for name, tensor in START.tensors().items()}
    for moved in (0.0, 1.0):
        local = local_of(replace(task, kept=h), SPEC, "fed_dyn")
        with torch.no_grad():
            for parameter in local.parameters.values():
                parameter += moved
        penalty = FedDyn(0.4).penalty(local)
        assert penalty is not None
        penalty.backward()
        count = sum(parameter.numel() for parameter in local.parameters.values())
        assert penalty.item() == pytest.approx(count * moved * (0.2 - 0.25), rel=1e-3, abs=1e-6)
        for parameter in local.parameters.values():
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, torch.full_like(parameter, 0.4 * moved - 0.25))
    _, kept = FedDyn(0.4).end(local, None)
    name = "block.1.query.lora_A"
    torch.testing.assert_close(kept[name][[0, 2]], torch.full((2, 5), 0.25 - 0.4))
    assert (kept[name][[1, 3]] == 0.25).all(), "of what it does not train it keeps what it had"
    assert set(kept) == {key.removeprefix("fed_dyn/") for key in h}


def test_strength_0_keeps_and_needs_nothing() -> None:
    rule = FedDyn(alpha=0)
    shapes = Shapes(SPEC, np.ones((3, 4), dtype=bool))
    assert rule.declares(shapes) == Declared()
    assert not rule.demands.needs
    assert rule.end(local_of(ClientTask(0, 0, 0, START, np.ones((3, 4), dtype=bool), TRAIN), SPEC), None) == ({}, {})
    with pytest.raises(ValueError, match="alpha must not be negative, but it is -1"):
        FedDyn(alpha=-1)


def test_what_it_needs() -> None:
    needs = FedDyn().demands.needs
    assert {DRIFT_TAKEN_BACK, LASTING_COMPONENTS, OWN_COMPONENTS, ALL_SHARED} <= needs
    assert PLAIN_SGD not in needs, "any optimizer will do"
    assert DRIFT_KEPT in FedDyn().demands.promises & FedDynServer().demands.needs
