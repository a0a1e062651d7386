"""Refuse settings that are each right and cannot work together, before anything is loaded."""

from collections.abc import Iterator

import numpy as np

from hellora.client.eight_bit import check_eight_bit
from hellora.client.own_metrics import BUILT_IN
from hellora.core.errors import InputError
from hellora.data.preferences import check_preference
from hellora.data.settings import LANGUAGE, ONE_CLASS, TEXTS
from hellora.experiments.devices import fully_known
from hellora.experiments.experiment import Experiment
from hellora.experiments.machine import devices
from hellora.experiments.method_settings import MethodSettings
from hellora.methods.demands import (
    AGGREGATES_HEAD,
    ALL_SHARED,
    BOUNDED_ADAPTER,
    CLASSES,
    HEAD,
    HEAD_TRAINED,
    LASTING_COMPONENTS,
    LONE_ADAPTER,
    OWN_COMPONENTS,
    PLAIN_SGD,
    PLANNER,
    PROBABILITIES,
    PROTOTYPES_KEPT,
    PROXY_DATA,
    PUBLIC_DATA,
    REPEATED_BATCHES,
    REPLACES_LOSS,
    SCORED_MODEL,
    SHARED_MODEL,
    TARGETS,
    TRAINS_B,
    TRAINS_B_EVERY_ROUND,
    TRAINS_BOTH,
    TRAINS_ONLY_B,
    Demands,
    Fact,
    check_demands,
)

TRAINS: dict[str, set[Fact]] = {
    "both": {TRAINS_B, TRAINS_B_EVERY_ROUND, TRAINS_BOTH},
    "B": {TRAINS_B, TRAINS_B_EVERY_ROUND, TRAINS_ONLY_B},
    "alternate": {TRAINS_B},
    "A": set(),
}


def contradictions(experiment: Experiment, simulated: bool) -> None:
    """Refuse settings that are each right and cannot work together. Simulated clients need more than real ones."""
    check_clients(experiment)
    check_times(experiment, simulated)
    check_demands([*of_strategies(experiment), *of_settings(experiment)])
    check_ranks(experiment)
    check_budgets(experiment)
    check_start(experiment)
    if experiment.task.columns == "preference":
        check_preference(experiment.data)
    check_saved(experiment)
    check_targets(experiment)
    check_metrics(experiment)
    check_stop(experiment)
    if simulated:
        check_attention(experiment)
        check_eight_bit(experiment.train, devices(experiment.compute.device)[0].partition(":")[0])
    method = experiment.method
    if experiment.run.eval_examples and method.personal:
        raise InputError(
            f"eval_examples = {experiment.run.eval_examples} samples the test split, and clients with models of their "
            f"own are evaluated on their own held-out examples: remove it"
        )
    if method.shares != "both" and method.trains in ("A", "B") and method.trains != method.shares:
        raise InputError(f"method.trains = {method.trains!r}, but only {method.shares!r} is shared: nothing would be")


# ------------------------------------------------------------------------------------------- what needs and promises
# what


def of_strategies(experiment: Experiment) -> Iterator[tuple[str, Demands]]:
    """Yield the strategies, as the experiment names them, with their demands."""
    method, named = experiment.method, experiment.table["method"]
    yield f"method.start = {named['start']!r}", method.start.demands
    yield f"method.sampler = {named['sampler']!r}", method.sampler.demands
    yield f"method.allocator = {named['allocator']!r}", method.allocator.demands
    yield f"method.dispatcher = {named['dispatcher']!r}", method.dispatcher.demands
    for name, rule in zip(named["local_training"], method.local_training, strict=True):
        yield f"method.local_training = [{name!r}]", rule.demands
    yield f"method.aggregator = {named['aggregator']!r}", method.aggregator.demands
    yield f"server.optimizer = {experiment.table['server']['optimizer']!r}", method.server_optimizer.demands


def of_settings(experiment: Experiment) -> Iterator[tuple[str, Demands]]:
    """Yield the same of the settings beside the strategies."""
    method, data, train = experiment.method, experiment.data, experiment.train
    columns = experiment.task.columns
    budgets = experiment.fleet.budgets(data.num_clients, experiment.run.seed)
    promised: set[Fact] = {PLANNER, *TRAINS[method.trains]}
    promised |= {CLASSES} if columns in ONE_CLASS else set()
    promised |= {TARGETS} if columns in (*ONE_CLASS, *TEXTS) else set()
    promised |= {PROBABILITIES} if columns != "text_numbers" else set()
    promised |= set() if columns in LANGUAGE else {HEAD}
    promised |= {HEAD} if experiment.model.modules_to_save else set()
    promised |= {PROXY_DATA} if data.proxy_examples > 0 else set()
    promised |= {PUBLIC_DATA} if data.public else set()
    promised |= {PLAIN_SGD} if train.optimizer == "sgd" and train.momentum == 0 else set()
    promised |= {REPEATED_BATCHES} if train.same_batches else set()
    promised |= set() if method.personal else {SHARED_MODEL, SCORED_MODEL}
    promised |= {HEAD_TRAINED} if method.head in ("aggregate", "local") else set()
    promised |= {ALL_SHARED} if method.shares == "both" else set()
    yield "the experiment", Demands(promises=frozenset(promised))
    if method.shares != "both":
        yield f"method.shares = {method.shares!r}", Demands(needs=frozenset({LASTING_COMPONENTS, OWN_COMPONENTS}))
    if own := experiment.task.own_loss:
        yield f"task.{own}", Demands(takes=frozenset({REPLACES_LOSS}))
    if method.head != "aggregate":
        yield f"method.head = {method.head!r}", Demands(needs=frozenset({HEAD}))
    if method.start.passes and (method.head_rounds or method.head == "closed_form"):
        yield "a head that is solved again", Demands(needs=frozenset({LONE_ADAPTER, SHARED_MODEL}))
    if method.ends_with == "better":
        yield "method.ends_with = 'better'", Demands(needs=frozenset({CLASSES}))
    if method.head_mean == "by_class":
        needs = frozenset({HEAD, LONE_ADAPTER, SHARED_MODEL})
        yield "method.head_mean = 'by_class'", Demands(needs, takes=frozenset({AGGREGATES_HEAD}))
    if experiment.policy.policy.prefix_cache != "none":
        yield "policy.use with a prefix cache", Demands(needs=frozenset({REPEATED_BATCHES}))
    if any(budget.memory_bytes is not None for budget in budgets):
        yield "fleet.memory", Demands(needs=frozenset({BOUNDED_ADAPTER}))


# -------------------------------------------------------------------------------------------------- numbers that must
# agree


def check_start(experiment: Experiment) -> None:
    """Raise InputError where settings of a head in closed form are there, and nothing that solves it."""
    method, usual = experiment.method, MethodSettings()
    if method.logit_scale != usual.logit_scale and experiment.task.columns == "text_numbers":
        raise InputError("method.logit_scale is of classes, and a regression says numbers as they are: remove it")
    if method.head_mean == "by_class" and method.head != "aggregate":
        raise InputError(f"method.head_mean = 'by_class' with method.head = {method.head!r}: no head is aggregated")
    if method.ends_with == "better" and not (
        method.start.leaves_out
        and method.head_begins == "solved"
        and (method.head_rounds or method.head == "closed_form")
    ):
        raise InputError(
            "method.ends_with = 'better' compares heads that a ridge regression solves before and after training: set "
            "method.start = 'ridge' and method.head = 'closed_form', or remove it"
        )
    if method.start.passes:
        if method.head_begins == "drawn" and not (method.head_rounds or method.head == "closed_form"):
            raise InputError(
                "method.head_begins = 'drawn' with a start that is never used: set method.head_rounds, or head = "
                "'closed_form', or remove it"
            )
        return
    if method.head == "closed_form":
        raise InputError("method.head = 'closed_form' needs something that solves it: set method.start = 'ridge'")
    for name in ("head_begins", "head_rounds", "logit_scale", "projection"):
        if getattr(method, name) != getattr(usual, name):
            raise InputError(f"method.{name} is of a head that is solved: set method.start = 'ridge', or remove it")


def check_targets(experiment: Experiment) -> None:
    """Raise InputError where settings of [data] say how targets are written that the task does not have."""
    data, columns = experiment.data, experiment.task.columns
    if data.separator and columns != "text_labels":
        raise InputError("data.separator is of labels in one text: set task.name = 'multi_label', or remove it")
    if data.labels and columns not in ("text_numbers", "text_labels"):
        raise InputError("data.labels are of regression and multi_label, and one class has data.label: remove it")


def check_attention(experiment: Experiment) -> None:
    """Raise InputError where attention has no gradient on the device that simulated clients train on."""
    device = devices(experiment.compute.device)[0]
    if experiment.model.attn_implementation == "flex_attention" and device.startswith("cpu"):
        raise InputError(
            "model.attn_implementation = 'flex_attention' has no gradient on a CPU: remove it, choose sdpa, or set "
            "compute.device = 'cuda'"
        )


def check_saved(experiment: Experiment) -> None:
    """Raise InputError where modules that train whole would not: they are averaged with the head, and like it."""
    saved, method = list(experiment.model.modules_to_save), experiment.method
    if not saved:
        return
    if method.head != "aggregate":
        raise InputError(
            f"model.modules_to_save = {saved} train and are averaged as a head is, and method.head = {method.head!r}: "
            f"set method.head = 'aggregate', or remove one of them"
        )
    if method.start.passes or method.head_mean == "by_class":
        raise InputError(
            f"model.modules_to_save = {saved} are no part of a head that is solved, or averaged by class: remove them, "
            f"or method.start and method.head_mean"
        )
    if experiment.policy.policy.prefix_cache != "none":
        raise InputError(
            f"policy.use with a prefix cache keeps what frozen blocks make of an example, and model.modules_to_save = "
            f"{saved} may change what they are given: remove one of them"
        )


def check_metrics(experiment: Experiment) -> None:
    """Raise InputError where a metric needs what the task's predictions do not have."""
    columns, named = experiment.task.columns, experiment.table["task"]["name"]
    for metric in experiment.metrics:
        if columns in LANGUAGE:
            raise InputError(
                f"task.metrics: {metric.setting!r} compares predictions with what is right, and {named} makes none: "
                f"remove it"
            )
        if columns not in ONE_CLASS and (metric.setting in BUILT_IN or metric.takes_probabilities):
            raise InputError(
                f"task.metrics: {metric.setting!r} is of examples with a class each, which those of {named} have not: "
                f"remove it"
            )


def check_stop(experiment: Experiment) -> None:
    """Raise InputError where a run could end early by nothing but the test data, or before what its end is to do."""
    method, stop = experiment.method, experiment.stop
    if not stop.asked:
        return
    if not experiment.data.validation:
        raise InputError(
            "stop ends a run by validation data, for what is tested on must not choose the end: set data.validation, "
            "such as 0.1, or remove [stop]"
        )
    if method.solves_after(experiment.run.rounds - 1, experiment.run.rounds):
        raise InputError(
            "stop may end a run before its last round, after which the head is solved again: set method.head = "
            "'aggregate' and method.head_rounds = 0, or remove [stop]"
        )


def check_clients(experiment: Experiment) -> None:
    """Raise InputError if a round would ask more clients than there are, as far as that is known yet."""
    run, clients = experiment.run, experiment.most_clients
    if clients is None:
        return
    if run.cohort > clients:
        raise InputError(f"cohort = {run.cohort} is more than data.clients = {clients}: set cohort = {clients} or less")
    if run.asked > clients:
        raise InputError(
            f"over_select = {run.over_select} asks {run.asked} clients, but data.clients = {clients}: lower it"
        )


def check_ranks(experiment: Experiment) -> None:
    """Raise InputError if a client would train more components than the adapter has or, where every rank has a
    prototype, nobody would train the largest."""
    largest = max((int(np.max(ranks)) for ranks in experiment.fleet.ranks), default=experiment.model.rank)
    if largest > experiment.model.rank:
        raise InputError(
            f"fleet.ranks has {largest}, but model.rank = {experiment.model.rank}: set model.rank = {largest}"
        )
    if PROTOTYPES_KEPT in experiment.method.aggregator.demands.promises and largest < experiment.model.rank:
        raise InputError(
            f"fleet.ranks ends at {largest}, so nobody would train the prototype of model.rank = "
            f"{experiment.model.rank}: set model.rank = {largest}"
        )


def check_budgets(experiment: Experiment) -> None:
    """Raise InputError unless somebody is able to train."""
    budgets = experiment.fleet.budgets(experiment.data.num_clients, experiment.run.seed)
    if not any(budget.capacity(1) and (budget.rank is None or np.any(budget.rank)) for budget in budgets):
        raise InputError(
            "fleet: no client can train, each has 0 layers or rank 0: give a group that has neither a larger share in "
            "fleet.shares"
        )


def check_times(experiment: Experiment, simulated: bool) -> None:
    """Raise InputError if something goes by simulated time and not every client's is known; real clients take what they
    take."""
    run, clients = experiment.run, experiment.data.num_clients
    devices = experiment.fleet.devices(clients, run.seed)
    if experiment.fleet.seconds and any(device.speed is None for device in devices):
        raise InputError(f"fleet.seconds needs the speed of every device: give {experiment.fleet.table} a column speed")
    if simulated and (run.deadline is not None or run.asked > run.cohort) and not fully_known(devices):
        what = "over_select" if run.deadline is None else "deadline"
        raise InputError(
            f"{what} goes by simulated time: give fleet.speed and fleet.link, a fleet.table with the columns speed and "
            f"link, or a fleet.distribution"
        )
