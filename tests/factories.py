"""Small shared builders: a tiny adapter, fleets, views, and a fake backend at the seam."""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hellora.core.algebra import trained_part
from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate, TrainSettings
from hellora.core.state import ServerState, StrategyState, select
from hellora.core.types import Adapter, AdapterSpec, Budget, ClientProfile, LoraPair, Mask, ModuleSpec
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.everything import Everything
from hellora.methods.context import RoundContext, Scores
from hellora.methods.demands import Fact
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.local import Local, LocalPair, Shapes
from hellora.methods.samplers.uniform import Uniform
from hellora.methods.server_optimizers.average import Average
from hellora.methods.starts.none import NoStart
from hellora.methods.strategies import Aggregator, Allocator, Answers, Dispatcher, Method, Strategy
from hellora.server.answers import Gathered, gather
from hellora.server.backend import Backend, Order
from hellora.server.federation import Federation


def tiny_spec(num_layers: int = 3, max_rank: int = 4) -> AdapterSpec:
    """Two modules per layer, of unequal shapes."""
    modules = [
        module
        for layer in range(num_layers)
        for module in (
            ModuleSpec(f"block.{layer}.query", layer, d_in=5, d_out=6),
            ModuleSpec(f"block.{layer}.value", layer, d_in=5, d_out=3),
        )
    ]
    return AdapterSpec(tuple(modules), tuple(f"block.{layer}" for layer in range(num_layers)), max_rank, scale=2.0)


def random_adapter(spec: AdapterSpec, seed: int) -> Adapter:
    """Every tensor standard normal, with a head of a weight and a bias."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    pairs = {
        m.name: LoraPair(normal(spec.max_rank, m.d_in), normal(m.d_out, spec.max_rank), spec.scale)
        for m in spec.modules
    }
    return Adapter(pairs, {"weight": normal(2, 3), "bias": normal(2)})


def fleet_of(*budgets: Budget | int | None) -> tuple[ClientProfile, ...]:
    """One client per budget, a number is one of layers; their ids are not their positions, and their sizes differ."""
    full = [b if isinstance(b, Budget) else Budget(layers=b) for b in budgets]
    return tuple(ClientProfile(10 + 3 * i, 5 + 7 * i, budget) for i, budget in enumerate(full))


def no_scores() -> Scores:
    raise AssertionError("layer_scores() must not be called here")


@dataclass(frozen=True)
class MemoryLaw:
    """In the place of a planner: memory follows the shallowest trained layer, the layers, and the components.

    A client without a limit can afford everything.
    """

    path: float
    layer: float
    component: float
    limits: Mapping[int, float]  # by client id

    def fits(self, client: ClientProfile, ranks: Any) -> bool:
        trained = np.flatnonzero(ranks)
        if not len(trained):
            return True
        cost = self.path * (len(ranks) - trained[0]) + self.layer * len(trained) + self.component * np.sum(ranks)
        return bool(cost <= self.limits.get(client.id, np.inf))


@dataclass(frozen=True)
class Lent:
    """In the place of the server's model: scores that are given, and prototypes that learn nothing."""

    scores: Callable[[], Scores] = no_scores
    taught: Callable[..., Mapping[int, Adapter]] = lambda students, *_: students

    def layer_scores(self, adapter: Adapter) -> Scores:
        return self.scores()

    def distil(self, students: Mapping[int, Adapter], weights: Mapping[int, float], how: Any, seed: int) -> Any:
        return self.taught(students, weights, how, seed)


def context_of(
    fleet: Sequence[ClientProfile],
    *,
    num_layers: int = 12,
    max_rank: int = 2,
    round: int = 0,
    rounds: int = 500,
    seed: int = 0,
    cohort: Sequence[ClientProfile] | None = None,
    layer_scores: Callable[[], Scores] = no_scores,
    state: StrategyState | None = None,
    scores: Mapping[int, Tensor] | None = None,
    ranks: Mapping[int, int] | None = None,
) -> RoundContext:
    """What an allocator sees; by default the whole fleet is the cohort. `scores` and `ranks` are what clients
    reported."""
    reports: dict[int, dict[str, Tensor]] = {}
    for client, told in (scores or {}).items():
        reports.setdefault(client, {})["layer_scores/scores"] = told
    for client, rank in (ranks or {}).items():
        reports.setdefault(client, {})["hetlora/rank"] = torch.tensor(rank)
    return RoundContext(
        round=round,
        rounds=rounds,
        seed=seed,
        spec=tiny_spec(num_layers, max_rank),
        fleet=tuple(fleet),
        cohort=tuple(fleet if cohort is None else cohort),
        able=tuple(fleet),
        lent=Lent(layer_scores),
        state=state or {},
        reports=reports,
    )


def round_of(adapter: Adapter, spec: AdapterSpec, seed: int = 0, round: int = 0) -> RoundContext:
    """A round without clients, as an aggregator or a dispatcher sees it."""
    return RoundContext(round=round, rounds=10, seed=seed, spec=spec, fleet=(), adapter=adapter, lent=Lent())


def aggregated(aggregator: Aggregator, adapter: Adapter, answers: Answers, spec: AdapterSpec, seed: int = 0) -> Adapter:
    """What an aggregator without a state makes of answers to one round's tasks."""
    round = answers[0][0].round if answers else 0
    found, state = aggregator.aggregate(round_of(adapter, spec, seed, round), answers)
    assert not state
    return found


def dispatched(dispatcher: Dispatcher, adapter: Adapter, trained: Mask, spec: AdapterSpec) -> Adapter:
    """What a client receives whose row is `trained`."""
    return dispatcher.dispatch(round_of(adapter, spec), adapter, trained)


def method_of(allocator: Allocator, dispatcher: Dispatcher, aggregator: Aggregator, **others: Any) -> Method:
    """A method with the usual sampler and server optimizer, plain local training, and a head as it was drawn."""
    usual: dict[str, Any] = {
        "start": NoStart(),
        "sampler": Uniform(),
        "local_training": (),
        "server_optimizer": Average(),
    }
    return Method(allocator=allocator, dispatcher=dispatcher, aggregator=aggregator, **{**usual, **others})


def orders_of(tasks: Iterable[ClientTask]) -> list[Order]:
    """Orders of tasks that are made already."""
    return [Order(task.client, lambda task=task: task) for task in tasks]


def gathered(
    tasks: Sequence[ClientTask],
    heard: Iterable[ClientUpdate | ClientFailure],
    spec: AdapterSpec,
    fleet: Sequence[ClientProfile],
    **others: Any,
) -> Gathered:
    """What comes of tasks that are made already: who answered them with what, held against them."""
    settings: dict[str, Any] = {"rounds": 9, "cohort": 9, "seed": 0, "train": TrainSettings(), **others}
    method = method_of(Everything(), Whole(), ParticipantMean())
    run = Federation(spec, tuple(fleet), **{"method": method, **settings})
    return gather(run, orders_of(tasks), (), iter(heard))


def task_for(client: int, adapter: Adapter, trained: Mask, cut: bool = False) -> ClientTask:
    """A task of round 0."""
    return ClientTask(0, client, client, adapter, trained, TrainSettings(), cut=cut)


def update_of(task: ClientTask, values: Adapter, spec: AdapterSpec, num_examples: int = 1) -> ClientUpdate:
    """The update that carries `values` where the task trains."""
    adapter = replace(trained_part(values, task.trained, spec), head=values.head)
    return ClientUpdate(task.round, task.client, num_examples, adapter)


def local_of(task: ClientTask, spec: AdapterSpec, rule: str = "", labels: Tensor | None = None) -> Local:
    """A client's parameters as a rule of local training sees them, without a model around them."""

    def parameter(tensor: Tensor, factor: str) -> nn.Parameter:
        return nn.Parameter(tensor.clone(), requires_grad=task.factors in ("both", factor))

    part = trained_part(task.adapter, task.trained, spec, task.cut)
    head = {} if task.head == "frozen" else dict(task.adapter.head)
    return Local(
        shapes=Shapes(spec, task.trained, task.factors, {name: tuple(tensor.shape) for name, tensor in head.items()}),
        train=task.train,
        pairs={
            name: LocalPair(parameter(pair.A, "A"), parameter(pair.B, "B"), pair.scale, lambda pair=pair: pair)
            for name, pair in part.pairs.items()
        },
        head={name: nn.Parameter(tensor.clone()) for name, tensor in head.items()},
        received_head=head,
        brief=select(task.brief, rule),
        kept=select(task.kept, rule),
        labels=lambda: labels,
    )


def effective(adapter: Adapter) -> dict[str, npt.NDArray[np.float64]]:
    """What each module adds to its weight, pair and residual together: dense (d_out, d_in), in float64."""
    dense = {}
    for name, pair in adapter.pairs.items():
        acting = [pair, adapter.residual[name]] if name in adapter.residual else [pair]
        dense[name] = np.sum([p.scale * p.B.double().numpy() @ p.A.double().numpy() for p in acting], axis=0)
    return dense


class LargestTensor(TorchDispatchMode):
    """While entered, notes the largest number of elements that an operation of torch returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def bits(tensors: Mapping[Any, Tensor]) -> dict[Any, tuple[torch.dtype, torch.Size, bytes]]:
    """What two sets of tensors have in common only if they are equal bit for bit."""
    return {name: (t.dtype, t.shape, t.contiguous().numpy().tobytes()) for name, t in tensors.items()}


def state_bits(state: ServerState) -> tuple[int, Any, dict[Any, tuple[torch.dtype, torch.Size, bytes]]]:
    """All of a state, comparable bit for bit."""
    named = {("report", client, name): t for client, told in state.reports.items() for name, t in told.items()}
    named |= {("kept", client, name): t for client, kept in state.kept.items() for name, t in kept.items()}
    return (
        state.round,
        (state.kept_versions, state.norms),
        bits({**state.adapter.tensors(), **state.strategies, **named}),
    )


def variants(package: ModuleType, base: type) -> Iterator[Any]:
    """Every strategy in a folder: with its defaults, and with each other value of each of its choices."""
    for _, cls in strategies(package, base):
        default = cls()
        yield default
        for name, hint in get_type_hints(cls).items():
            if get_origin(hint) is Literal:
                yield from (
                    replace(default, **{name: value}) for value in get_args(hint) if value != getattr(default, name)
                )


def strategies(package: ModuleType, base: type) -> Iterator[tuple[ModuleType, Any]]:
    """Each module of a folder with the one strategy it defines."""
    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        (cls,) = (
            value
            for value in vars(module).values()
            if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__
        )
        yield module, cls


def who_promises(fact: Fact, kind: str, found: Sequence[Strategy]) -> Callable[[Callable[..., None]], Any]:
    """A law that is for those of the strategies which promise a fact; the fact stays on it, for others who apply it."""
    promising = [strategy for strategy in found if fact in strategy.demands.promises]
    assert promising

    def mark(law: Callable[..., None]) -> Any:
        vars(law)["fact"] = fact
        return pytest.mark.parametrize(kind, promising, ids=repr)(law)

    return mark


def assert_is_a_strategy_file(module: ModuleType, cls: Any) -> None:
    """Citation first; one frozen dataclass, named like the file, whose fields all have defaults."""
    assert (module.__doc__ or "").splitlines()[0].strip(), module.__name__
    strategy = cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        strategy.anything = 1
    assert cls.__name__.lower() == module.__name__.rpartition(".")[2].replace("_", "")
    assert set(vars(strategy)) == {field.name for field in dataclasses.fields(strategy)}


Answer = ClientUpdate | ClientFailure


class FakeBackend(Backend):
    """Clients that add noise drawn from the task's seed; `answers` may spoil what they say on its way back."""

    def __init__(
        self,
        fleet: Sequence[ClientProfile],
        spec: AdapterSpec,
        answers: Callable[[list[ClientUpdate]], Iterable[Answer]] = list,
    ) -> None:
        self.fleet, self.spec, self.answers = fleet, spec, answers
        self.calls: list[list[ClientTask]] = []

    def clients(self) -> Sequence[ClientProfile]:
        return self.fleet

    def train(self, orders: Sequence[Order]) -> Iterator[Answer]:
        tasks = [order.make() for order in orders]
        self.calls.append(tasks)
        return iter(self.answers([self.trained(task) for task in tasks]))

    def trained(self, task: ClientTask) -> ClientUpdate:
        """An honest update."""
        rng = torch.Generator().manual_seed(task.seed)

        def moved(tensor: Tensor) -> Tensor:
            return tensor + 0.1 * torch.randn(tensor.shape, generator=rng)

        part = trained_part(task.adapter, task.trained, self.spec, task.cut)
        pairs = {
            name: LoraPair(
                pair.A if task.factors == "B" else moved(pair.A),
                pair.B if task.factors == "A" else moved(pair.B),
                pair.scale,
            )
            for name, pair in part.pairs.items()
        }
        head = {} if task.head == "frozen" else {name: moved(t) for name, t in task.adapter.head.items()}
        report = {}
        if "layer_scores/scores" in task.declared.report:
            drawn = torch.rand(self.spec.num_layers, generator=rng, dtype=torch.float64)
            report["layer_scores/scores"] = torch.where(torch.tensor(task.trained.any(axis=1)), drawn, torch.nan)
        (examples,) = (p.num_examples for p in self.fleet if p.id == task.client)
        return ClientUpdate(
            task.round, task.client, examples, Adapter(pairs, head), {"loss": 1.0}, report=report, attempt=task.attempt
        )


def rows_of(mask: Mask) -> list[list[int]]:
    """The trained layers of each client of an allocation's mask (clients, layers, max_rank)."""
    return [np.flatnonzero(row.any(axis=1)).tolist() for row in mask]
