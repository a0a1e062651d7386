"""Floor 5: from a checked experiment to what a run is made of: model, data, fleet, and how to evaluate a state."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hellora.aggregators.mutual_distillation import MutualDistillation
from hellora.algebra import new_adapter, prototypes_of
from hellora.backends.local import LocalBackend
from hellora.calibration import calibrate
from hellora.client import ClientWork
from hellora.config import Experiment
from hellora.data.partitioning import client_rows
from hellora.data.sources import Corpus, DataSettings, load_corpus
from hellora.distillation import Distillation, evaluate_ensemble
from hellora.errors import InputError
from hellora.evaluation import Evaluation, evaluate, fisher_scores, measure
from hellora.model import quantized_away
from hellora.planner import Planner
from hellora.protocols import Answers, Backend, Scores
from hellora.resident import BaseModel
from hellora.rounds import Federation, allocate
from hellora.seeds import rng_for, seed_for
from hellora.sharing import with_private
from hellora.tasks import Task, length_limit
from hellora.traced_rows import Shape
from hellora.types import Adapter, Allocation, ClientProfile, ServerState

FISHER_BATCH = 16  # examples with a copy of the adapter each
HELD_OUT = 0.2  # of a client's examples, kept for evaluation where heads are personal

Parts = list[npt.NDArray[np.int64]]


def on_this_machine(setup: "Setup") -> LocalBackend:
    """The local backend, with its worker processes where there is more than one."""
    names = devices(setup.experiment.compute.device)
    run, workers = setup.federation, setup.experiment.compute.workers
    backend = LocalBackend(setup.work, run.fleet, workers, names, run.wire)
    setup.base.to(names[0])
    setup.work.warm_up()
    return backend


@dataclass(frozen=True, eq=False)
class Setup:
    """A prepared experiment: data and model are loaded, the fleet is known, nothing has been trained."""

    experiment: Experiment
    corpus: Corpus
    work: ClientWork
    federation: Federation
    held_out: Parts  # each client's evaluation rows where heads are personal, else nothing
    connect: Callable[["Setup"], AbstractContextManager[Backend]] = on_this_machine
    clients: Mapping[str, Any] = field(default_factory=dict)  # what those of a network said of themselves, by name

    @property
    def base(self) -> BaseModel:
        """The model, resident in this process, whose own weights are never written to."""
        return self.work.base

    def initial_state(self) -> ServerState:
        """The state before round 0: a new adapter (A drawn by the experiment's seed, B = 0) and the initial head."""
        seed = seed_for(self.experiment.run.seed, "adapter")
        return ServerState(0, new_adapter(self.base.spec, self.base.initial_head(), seed))

    def distil(self, adapter: Adapter, answers: Answers, seed: int) -> Adapter:
        """The adapter after its prototypes have taught each other on the server's public data."""
        method = self.experiment.method
        assert isinstance(method.aggregator, MutualDistillation), "only this one distils"
        return Distillation(
            method.aggregator,
            self.base,
            self.experiment.task,
            self.corpus.public,
            self.experiment.train.precision,
            train_head=method.head == "aggregate",
        ).distil(adapter, answers, seed)

    def layer_scores(self, adapter: Adapter) -> Scores:
        """Fisher scores on the server's proxy data, (layers,)."""
        return fisher_scores(adapter, self.base, self.experiment.task, self.corpus.proxy, FISHER_BATCH)

    def evaluate(self, state: ServerState) -> Evaluation:
        """On the test split; where clients have models of their own, each on its own held-out rows, and their mean."""
        if not self.held_out:
            return self.evaluate_adapter(state.adapter, self.corpus.test)
        clients = {}
        for client, rows in enumerate(self.held_out):
            if len(rows):
                adapter = with_private(state.adapter, state.private.get(client, {}))
                clients[client] = self.evaluate_adapter(adapter, self.work.data.select(rows)).metrics
        return Evaluation(self.mean_by_rows(clients), clients=clients)

    def evaluate_adapter(self, adapter: Adapter, rows: Any) -> Evaluation:
        """One adapter on rows of a `datasets.Dataset`."""
        size, precision = self.experiment.compute.eval_batch_size, self.experiment.train.precision
        return evaluate(adapter, self.base, self.experiment.task, rows, size, precision)

    def mean_by_rows(self, clients: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
        """The mean of clients' own metrics, weighted by the number of their held-out rows."""
        totals: dict[str, float] = {}
        for client, metrics in clients.items():
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value * len(self.held_out[client])
        count = sum(len(self.held_out[client]) for client in clients)
        return {name: total / count for name, total in totals.items()}

    def evaluate_prototypes(self, state: ServerState) -> dict[str, Any]:
        """On the test split: metrics of every prototype, by its rank, and of their ensemble. {} for a lone adapter."""
        if not state.adapter.prototypes:
            return {}
        rows, size = self.corpus.test, self.experiment.compute.eval_batch_size
        settings = (self.base, self.experiment.task, rows, size, self.experiment.train.precision)
        prototypes = prototypes_of(state.adapter, self.base.spec)
        return {
            "prototypes": {str(rank): evaluate(prototype, *settings).metrics for rank, prototype in prototypes.items()},
            "ensemble": evaluate_ensemble(list(prototypes.values()), *settings).metrics,
        }

    def backend(self) -> AbstractContextManager[Backend]:
        """Where the clients are, as a context: what it starts ends with it. Moves the base to its device."""
        return self.connect(self)

    @property
    def training_examples(self) -> int:
        """Of all clients together."""
        return sum(client.num_examples for client in self.federation.fleet)


def prepare(experiment: Experiment) -> Setup:
    """Load data and model, deal the data out to the clients, and plan what fits their budgets.

    It also sets the number of torch's threads, as `compute.threads` says.

    Raises:
        InputError: data, model or device do not fit the settings; cheap checks come first.
    """
    torch.set_num_threads(threads(experiment))
    seed = experiment.run.seed
    device_check(experiment.compute.device)
    if any(isinstance(ranks, tuple) for ranks in experiment.fleet.ranks):
        plan(experiment, 0)  # one rank per layer: the model's config tells whether their number is right
    column = getattr(experiment.partitioner, "column", None)
    corpus = load_corpus(
        experiment.data, experiment.task.columns, seed_for(seed, "data"), keep=(column,) if column else ()
    )
    head_check(experiment, corpus)
    if experiment.method.allocator.needs_proxy and not len(corpus.proxy):
        raise InputError(
            "data.proxy: the allocator scores layers on proxy data, and there is none: name a source or a split, "
            "or set method.scores = 'clients'"
        )
    parts = client_rows(experiment.partitioner, corpus.train, experiment.data.clients, seed_for(seed, "partition"))
    held_out: Parts = []
    if experiment.method.personal:
        parts, held_out = hold_out(parts, experiment.data, seed)
    base = experiment.task.load(experiment.model, corpus.labels, seed_for(seed, "head"))
    profiles = fleet(experiment, [len(part) for part in parts])
    run = federation(
        experiment, base, profiles, planner(experiment, corpus.labels, lambda _: longest(base, experiment, corpus))
    )
    rehearse(run, 0)
    if experiment.method.dispatcher.bypasses:
        bypass_check(base, experiment.task, corpus.train.select([0]))
    return Setup(experiment, corpus, ClientWork(base, experiment.task, corpus.train, parts), run, held_out)


def plan(experiment: Experiment, round: int) -> tuple[Federation, Allocation]:
    """The allocation of one round, without weights or data. Layer scores, which need both, stand as all equal.

    Raises:
        InputError: there is no such round, or no client can train anything.
    """
    if not 0 <= round < experiment.run.rounds:
        raise InputError(f"--round {round}: the rounds are 0 to {experiment.run.rounds - 1}")
    base = experiment.task.load(experiment.model, (), 0, weights=False)
    profiles = fleet(experiment, [0] * experiment.data.clients)
    run = federation(
        experiment, base, profiles, planner(experiment, (), lambda bare: length_limit(bare, experiment.task.max_tokens))
    )
    return run, rehearse(run, round)


def planner(experiment: Experiment, labels: Sequence[str], tokens: Callable[[BaseModel], int]) -> Planner | None:
    """What says which rows and policies fit; None where no budget is in bytes or seconds and no speed known."""
    if not experiment.fleet.in_bytes_or_seconds and not experiment.method.allocator.needs_planner:
        return None
    bare = experiment.task.load(experiment.model, labels, 0, weights=False)
    return planner_of(experiment, bare, tokens(bare))


def planner_of(experiment: Experiment, bare: BaseModel, tokens: int) -> Planner:
    """The planner for a base without weights and examples of so many tokens; `bare` is of no further use."""
    device = kind_of(experiment.compute.device)
    saved = quantized_away(bare.net, experiment.model)
    shape = Shape(experiment.train.batch_size, tokens)
    model = calibrate(bare, experiment.task, shape, experiment.method, experiment.train, device, experiment.wire.format)
    policy = experiment.policy.policy
    if experiment.model.quantization != "none":
        policy = replace(policy, fold=False)  # nothing is folded into packed weights
    return Planner(
        replace(model, weights_bytes=model.weights_bytes - saved), experiment.train, policy, experiment.policy.may
    )


def longest(base: BaseModel, experiment: Experiment, corpus: Corpus) -> int:
    """Tokens of the longest training example."""
    lengths = experiment.task.encode(base, corpus.train).lengths
    return 1 if lengths is None else int(lengths.max())


def rehearse(run: Federation, round: int) -> Allocation:
    """A round's allocation as far as it is known without weights: all layers score alike."""
    return allocate(run, ServerState(round, Adapter({})), lambda _: np.ones(run.spec.num_layers))[0]


def federation(
    experiment: Experiment,
    base: BaseModel,
    profiles: tuple[ClientProfile, ...],
    planner: Planner | None,
    simulated: bool = True,
) -> Federation:
    run = experiment.run
    return Federation(
        spec=base.spec,
        fleet=profiles,
        method=experiment.method,
        rounds=run.rounds,
        cohort=run.cohort,
        spares=run.asked - run.cohort,
        deadline=run.deadline,
        seed=run.seed,
        train=experiment.train,
        min_clients=run.min_clients,
        attempts=run.attempts,
        policy=experiment.policy.policy,
        planner=planner,
        simulated=simulated,
        wire=experiment.wire.format,
        max_norm=experiment.guard.max_norm,
    )


def fleet(experiment: Experiment, sizes: Sequence[int]) -> tuple[ClientProfile, ...]:
    """The profiles of all clients, by id."""
    budgets = experiment.fleet.budgets(len(sizes), experiment.run.seed)
    devices = experiment.fleet.devices(len(sizes), experiment.run.seed)
    return tuple(
        ClientProfile(i, size, budget, device.speed, device.link, device.availability)
        for i, (size, budget, device) in enumerate(zip(sizes, budgets, devices, strict=True))
    )


def head_check(experiment: Experiment, corpus: Corpus) -> None:
    """A head must have room for the classes, and a classification task must have classes."""
    classes = experiment.model.classes
    if experiment.task.columns != "instruction" and len(corpus.labels) < 2:
        raise InputError(f"data.label: {experiment.data.name} has one class only: name a column with two or more")
    if experiment.task.columns != "instruction" and classes is not None and len(corpus.labels) > classes:
        raise InputError(
            f"model.classes = {classes}, but {experiment.data.name} has {len(corpus.labels)} classes: "
            f"set model.classes = {len(corpus.labels)}, or remove it"
        )


def bypass_check(base: BaseModel, task: Task, rows: Any) -> None:
    """A model must work with blocks left out. T5's hand each other more than hidden states."""
    nothing = np.zeros((base.spec.num_layers, base.spec.max_rank), dtype=bool)
    try:
        with torch.no_grad(), base.dressed(Adapter({}, base.initial_head()), nothing, bypass=True):
            measure(lambda batch: task.outputs(base, batch), base, task, rows, batch_size=1)
    except Exception as error:  # whatever a model's code raises
        raise InputError(
            f"method.dispatcher leaves blocks out, and this model does not work without ({type(error).__name__}: "
            f"{' '.join(str(error).split())}): choose another dispatcher or model"
        ) from error


def hold_out(parts: Parts, data: DataSettings, seed: int) -> tuple[Parts, Parts]:
    """Every client's rows as (training, held out); a client with one row trains on it and holds out none.

    Where there is a validation split, one half of what is held out is for the test, the other for validation.
    """
    half = slice(1 if data.evaluate_on == "validation" else 0, None, 2) if data.validation else slice(None)
    train, held = [], []
    for client, part in enumerate(parts):
        order = rng_for(seed, "held out", client).permutation(part)
        count = min(max(1, round(HELD_OUT * len(part))), len(part) - 1)
        train.append(np.sort(order[count:]))
        held.append(np.sort(order[:count][half]))
    if not any(map(len, held)):
        raise InputError(
            f"data.clients: {len(parts)} clients, with models of their own, have too few examples to hold out any to "
            f"evaluate them on: lower it"
        )
    return train, held


def threads(experiment: Experiment) -> int:
    """Threads of this process and of each worker; results depend on them, so they are the same everywhere."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return experiment.compute.threads or max(1, cores // experiment.compute.workers)


def devices(name: str) -> list[str]:
    """The devices of the worker processes, in turn."""
    if name == "auto":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    return [name]


def kind_of(name: str) -> str:
    """cpu or cuda: the kind of device whose kernels are assumed for costs. It need not be there."""
    kind = devices(name)[0].partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise InputError(f"compute.device = {name!r}: costs are known for cpu and cuda: name one of them, or auto")
    return kind


def device_check(name: str) -> None:
    if name != "auto":
        try:
            torch.zeros(1, device=name).tolist()
        except (RuntimeError, AssertionError, ImportError) as error:
            why = str(error).splitlines()[0].partition(". ")[0]
            raise InputError(f"compute.device = {name!r} cannot be used here ({why}): name another, or auto") from error
