"""Settings that are each right and cannot work together, found before anything is loaded."""

from typing import TYPE_CHECKING

import numpy as np

from hellora.core.errors import InputError
from hellora.experiments.devices import fully_known
from hellora.methods.protocols import Method
from hellora.methods.server_step import ServerStep

if TYPE_CHECKING:
    from hellora.experiments.config import Experiment


def contradictions(experiment: "Experiment", simulated: bool) -> None:
    """Refuse settings that are each right and cannot work together. Simulated clients need more than real ones."""
    run, method, data = experiment.run, experiment.method, experiment.data
    if run.cohort > data.clients:
        raise InputError(
            f"cohort = {run.cohort} is more than data.clients = {data.clients}: set cohort = {data.clients} or less"
        )
    check_times(experiment, simulated)
    check_prototypes(method, data.public)
    aggregator = method.aggregator
    if not method.dispatcher.keeps_components and aggregator.averages_components:
        raise InputError(
            "method.dispatcher sends other rank components than the global adapter's, and the aggregator averages by "
            "component: choose an aggregator of products, such as product_update"
        )
    if not aggregator.keeps_components and method.server_step != ServerStep():
        raise InputError(
            "server.lr and server.momentum go by rank component, which this aggregator does not keep: remove"
        )
    if not aggregator.keeps_components and method.shares != "both":
        raise InputError("method.shares needs an aggregator that keeps rank components: remove it")
    if method.shares not in aggregator.shares:
        raise InputError(f"method.shares = {method.shares!r} does not go with this aggregator: remove it")
    if aggregator.pads and method.dispatcher.sends_untrained:
        raise InputError(
            "this aggregator pads what a client lacks, so only what it trains may be sent: "
            "set method.dispatcher = 'truncate'"
        )
    if method.trains not in aggregator.trains:
        allowed = " or ".join(map(repr, aggregator.trains))
        raise InputError(f"method.trains = {method.trains!r}, but the aggregator needs {allowed}: change one of them")
    if method.shares != "both" and method.trains not in ("both", "alternate") and method.trains != method.shares:
        raise InputError(f"method.trains = {method.trains!r}, but only {method.shares!r} is shared: nothing would be")
    largest = max((int(np.max(ranks)) for ranks in experiment.fleet.ranks), default=experiment.model.rank)
    if largest > experiment.model.rank:
        raise InputError(
            f"fleet.ranks has {largest}, but model.rank = {experiment.model.rank}: set model.rank = {largest}"
        )
    if aggregator.distils and largest < experiment.model.rank:
        raise InputError(
            f"fleet.ranks ends at {largest}, so nobody would train the prototype of model.rank = "
            f"{experiment.model.rank}: set model.rank = {largest}"
        )
    budgets = experiment.fleet.budgets(data.clients, run.seed)
    if not any(budget.capacity(1) and (budget.rank is None or np.any(budget.rank)) for budget in budgets):
        raise InputError(
            "fleet: no client can train, each has 0 layers or rank 0: give a group that has neither a larger share in "
            "fleet.shares"
        )
    if aggregator.leaves_residual and any(budget.memory_bytes is not None for budget in budgets):
        raise InputError(
            "fleet.memory: the residual of this aggregator grows at the clients with every round, so that no budget in "
            "bytes of memory can be kept: remove it, or choose an aggregator without a residual"
        )
    if experiment.policy.policy.prefix_cache != "none" and not experiment.train.same_batches:
        raise InputError("policy.use has a prefix cache, for which no batch comes twice: set train.same_batches = true")
    if method.allocator.needs_proxy and data.proxy_examples == 0:
        raise InputError(
            "data.proxy_examples = 0, but the allocator scores layers on proxy data: "
            "raise it, or set method.scores = 'clients'"
        )
    if method.allocator.needs_proxy and method.personal:
        raise InputError(
            "the allocator scores layers on the server's model, but with method.head = 'local' or method.shares "
            "clients train models of their own: set method.scores = 'clients', or choose another allocator"
        )
    if method.head != "aggregate" and experiment.task.columns == "instruction":
        raise InputError(f"method.head = {method.head!r}, but a language model has no head of its own: remove it")


def check_times(experiment: "Experiment", simulated: bool) -> None:
    """What goes by simulated time needs to know every client's; real clients take what they take."""
    run, clients = experiment.run, experiment.data.clients
    devices = experiment.fleet.devices(clients, run.seed)
    if experiment.fleet.seconds and any(device.speed is None for device in devices):
        raise InputError(f"fleet.seconds needs the speed of every device: give {experiment.fleet.table} a column speed")
    if simulated and (run.deadline is not None or run.asked > run.cohort) and not fully_known(devices):
        what = "over_select" if run.deadline is None else "deadline"
        raise InputError(
            f"{what} goes by simulated time: give fleet.speed and fleet.link, a fleet.table with the columns speed and "
            f"link, or a fleet.distribution"
        )
    if run.asked > clients:
        raise InputError(
            f"over_select = {run.over_select} asks {run.asked} clients, but data.clients = {clients}: lower it"
        )


def check_prototypes(method: Method, public: str) -> None:
    """Prototypes that teach each other: what sends them, and what they learn from, must be there."""
    if method.aggregator.distils != method.dispatcher.sends_prototypes:
        raise InputError(
            "method.aggregator = 'mutual_distillation' and method.dispatcher = 'prototype' belong together: set both"
        )
    if not method.aggregator.distils:
        return
    if method.server_step != ServerStep():
        raise InputError("server.lr and server.momentum move one global adapter, and this method has several: remove")
    if method.trains != "both" or method.personal:
        raise InputError(
            "method.trains, method.shares and method.head = 'local' do not go with an aggregator that distils, "
            "which trains whole models on the server: remove them"
        )
    if not public:
        raise InputError("data.public: the aggregator distils on public data: name a source or a split of the data")
