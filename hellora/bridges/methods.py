"""Refuse methods that ask more of a client than its own training can give."""

from collections.abc import Iterator

from hellora.core.errors import InputError
from hellora.core.exchange import ClientTask
from hellora.core.types import AdapterSpec
from hellora.experiments.experiment import Experiment
from hellora.methods.demands import BOUNDED_ADAPTER, LONE_ADAPTER, PLANNER, PROXY_DATA

PART = "which takes hellora's own client: hellora run PRESET --backend flower"


def check_method(experiment: Experiment, scored: bool) -> None:
    """Raise InputError where clients with code of their own cannot follow a method, or where it scores layers and
    nobody says how (`scored`)."""
    for why in problems(experiment, scored):
        raise InputError(f"{experiment.name}: {why}")


def problems(experiment: Experiment, scored: bool) -> Iterator[str]:
    method, named = experiment.method, experiment.table["method"]
    needed = frozenset().union(*(each.demands.needs for each in method.strategies))
    if rules := [rule.name for rule in method.local_training if rule.name != "plain"]:
        yield f"method.local_training has {', '.join(rules)}, {PART}"
    if method.start.passes:
        yield f"method.start = {named['start']!r} sums features, {PART}"
    if method.personal:
        yield f"method.head = {method.head!r} and method.shares = {method.shares!r} keep a part at clients, {PART}"
    if not method.aggregator.demands.promises >= {BOUNDED_ADAPTER, LONE_ADAPTER}:
        yield f"method.aggregator = {named['aggregator']!r} sends more than one adapter, {PART}"
    if PLANNER in needed:
        yield f"method.allocator = {named['allocator']!r} plans bytes and seconds, {PART}"
    if named["dispatcher"] == "bypass":
        yield f"method.dispatcher = 'bypass' leaves blocks out, {PART}"
    if experiment.wire.format != "fp32":
        yield f"wire.format = {experiment.wire.format!r} rounds what travels, {PART}"
    if PROXY_DATA in needed and not scored:
        yield (
            f"method.allocator = {named['allocator']!r} scores layers: give layer_scores, a function of the server's "
            f"arrays, or choose another allocator, such as random_layers"
        )


def check_task(task: ClientTask, spec: AdapterSpec) -> None:
    """Raise InputError where a client is to train a part of an array: its own code trains arrays, or freezes them."""
    counts = task.trained.sum(axis=1)
    if not task.cut and ((counts > 0) & (counts < spec.max_rank)).any():
        raise InputError(
            f"client {task.client} is to train {counts.max()} of {spec.max_rank} rank components of an array, and a "
            f"dispatcher sends the whole of it: set method.dispatcher to 'truncate', or give no client a rank"
        )
