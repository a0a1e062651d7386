"""Turn a checked experiment into a prepared one. What simulation and deployment have in common is `assemble`."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from hellora.backends.local import LocalBackend
from hellora.client.work import ClientWork
from hellora.core.errors import InputError
from hellora.core.seeds import seed_for
from hellora.core.types import ClientProfile
from hellora.data.natural import values_of
from hellora.data.partitioning import client_rows
from hellora.data.settings import LANGUAGE, ONE_CLASS
from hellora.data.sources import Corpus, load_corpus
from hellora.experiments.contradictions import check_clients
from hellora.experiments.experiment import Experiment
from hellora.experiments.holding_out import hold_out
from hellora.experiments.machine import device_check, devices, threads, workers
from hellora.experiments.model_checks import bypass_check, recompute_check, targets_check
from hellora.experiments.planning import federation, fleet, make_planner, plan, rehearse
from hellora.experiments.setup import Parts, Setup
from hellora.methods.demands import PROXY_DATA
from hellora.model.linear_head import linear_head
from hellora.model.normalise import special_tokens
from hellora.model.resident import BaseModel
from hellora.server.backend import Backend


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
    experiment, corpus = read_data(experiment)
    check_corpus(experiment, corpus)
    clients = experiment.data.num_clients
    parts = client_rows(experiment.partitioner, corpus.train, clients, seed_for(seed, "partition"))
    held_out: Parts = []
    validated: Parts = []
    if experiment.method.personal:
        if experiment.stop.asked:
            _, validated = hold_out(parts, replace(experiment.data, evaluate_on="validation"), seed)
        parts, held_out = hold_out(parts, experiment.data, seed)
    base = load_base(experiment, corpus)
    rules, start = experiment.method.local_training, experiment.method.start
    work = ClientWork(base, experiment.task, corpus.train, parts, rules, start, experiment.train)
    tokens = work.row_tokens  # a row that cannot be encoded is named here; later it would be its client's fault
    corpus = replace(corpus, notes=(*corpus.notes, *work.notes))
    setup = assemble(
        experiment,
        corpus,
        work,
        fleet(experiment, [len(part) for part in parts], [work.rows(client) for client in range(len(parts))]),
        tokens=lambda: tokens,
        planned=experiment.fleet.in_bytes_or_seconds,
        connect=on_this_machine,
        held_out=held_out,
    )
    return replace(setup, validated=validated)


def read_data(experiment: Experiment) -> tuple[Experiment, Corpus]:
    """Read the data; return the experiment with what they tell: the number of natural clients, settings of the task."""
    seed = seed_for(experiment.run.seed, "data")
    corpus = load_corpus(experiment.data, experiment.task.columns, seed, experiment.natural)
    told = experiment.task.number_sums(corpus.train)
    experiment = experiment.with_task(experiment.task.fitted([told], corpus.labels))
    if experiment.natural is not None:
        experiment = experiment.with_clients(len(values_of(corpus.train, experiment.natural)[0]))
        check_clients(experiment)
    return experiment, corpus


def on_this_machine(setup: Setup) -> LocalBackend:
    """Make the local backend, with its worker processes where there is more than one."""
    names = devices(setup.experiment.compute.device)
    run = setup.federation
    backend = LocalBackend(setup.work, run.fleet, workers(setup.experiment), names, run.wire)
    setup.base.to(names[0])
    setup.work.warm_up()
    return backend


def load_base(experiment: Experiment, corpus: Corpus) -> BaseModel:
    """Load the server's model; its head is drawn by the experiment's seed where the checkpoint has none.

    Raises:
        InputError: the model does not fit, or the method takes a head that is one linear layer, and it has another.
    """
    base = experiment.task.load(experiment.model, corpus.labels, seed_for(experiment.run.seed, "head"))
    if experiment.method.start.passes or experiment.method.head_mean == "by_class":
        linear_head(base)
    if experiment.task.columns in LANGUAGE and hasattr(base.processor, "added_tokens_decoder"):
        for name in ("prompt", "response"):
            written = [t for t in special_tokens(base.processor) if len(t) > 1 and t in getattr(experiment.data, name)]
            if written:
                base.notices += (f"data.{name} has {', '.join(written)}: in a template that is text, no special token",)
    return base


def assemble(
    experiment: Experiment,
    corpus: Corpus,
    work: ClientWork,
    profiles: tuple[ClientProfile, ...],
    *,
    tokens: Callable[[], int],
    planned: bool,
    connect: Callable[[Setup], AbstractContextManager[Backend]],
    held_out: Parts,
    clients: Mapping[str, Any] | None = None,
    run_id: str = "",
) -> Setup:
    """Assemble the prepared experiment of a fleet, in a simulation and, with `clients`, in a deployment.

    Args:
        experiment: what is prepared
        corpus: the data that the server sees; of a simulation the clients' too
        work: the model, and in a simulation the clients' data
        profiles: of all clients, by id
        tokens: of the longest row of a step; asked for only where it is `planned`
        planned: whether somebody has a budget in bytes or seconds
        connect: how to reach the clients
        held_out: each client's evaluation rows where heads are personal
        clients: what the clients of a network said of themselves, by name
        run_id: under which these clients keep tensors of their own

    Raises:
        InputError: no client can train anything, or the model does not work as the method needs it.
    """
    base = work.base
    found = make_planner(experiment, corpus.labels, lambda _: tokens(), planned)
    run = federation(experiment, base, profiles, found, simulated=clients is None)
    row, one = rehearse(run, 0).mask[0], (corpus.test if clients is not None else corpus.train).select([0])
    targets_check(base, experiment.task, one)
    recompute_check(base, experiment.task, one, run.policy)
    if experiment.method.dispatcher.sends(row, base.spec).bypass:
        bypass_check(base, experiment.task, one)
    return Setup(experiment, corpus, work, run, held_out, connect, clients or {}, run_id)


def check_corpus(experiment: Experiment, corpus: Corpus) -> None:
    """Raise InputError unless the data have what head and strategies need."""
    head_check(experiment, corpus)
    needed = any(PROXY_DATA in strategy.demands.needs for strategy in experiment.method.strategies)
    if needed and not len(corpus.proxy):
        raise InputError(
            "data.proxy: the allocator scores layers on proxy data, and there is none: name a source or a split, "
            "or set method.scores = 'clients'"
        )


def head_check(experiment: Experiment, corpus: Corpus) -> None:
    """Raise InputError unless a head has room for the classes, and a classification task has two classes or more."""
    classes, columns = experiment.model.classes, experiment.task.columns
    if columns in (*ONE_CLASS, "tokens") and len(corpus.labels) < 2:
        which = "tags" if columns == "tokens" else "label"
        raise InputError(f"data.{which}: {experiment.data.name} has one class only: name a column with two or more")
    if columns == "text_labels" and not corpus.labels:
        raise InputError(f"data.label: no example of {experiment.data.name} has a label: name another column")
    if columns == "text_numbers" and classes not in (None, len(corpus.labels)):
        raise InputError(f"model.classes = {classes}: a regression has no classes: remove it")
    if columns not in LANGUAGE and classes is not None and len(corpus.labels) > classes:
        raise InputError(
            f"model.classes = {classes}, but {experiment.data.name} has {len(corpus.labels)} classes: "
            f"set model.classes = {len(corpus.labels)}, or remove it"
        )
