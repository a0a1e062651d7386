"""Measure whom the result of a run serves how well: each capacity group, each client, and the worst off.

    accuracy of client i = Σ_c π_ic · recall_c / Σ_c π_ic

π_ic is the number of client i's training examples of class c; recall_c is that of the model which the client would
receive, on the test split; c runs over the classes that occur there. A client with a model of its own is measured
instead: that model, on the client's own held-out rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hellora.client.evaluation import Evaluation
from hellora.core.state import ServerState
from hellora.core.types import Adapter
from hellora.experiments.setup import Setup
from hellora.server.naming import naming

Clients = Sequence[int]
Ranks = tuple[int, ...]  # per layer


def served(setup: Setup, state: ServerState, evaluation: Evaluation) -> dict[str, Any]:
    """Return `groups`, `clients` and `worst_client` of a run's summary; `evaluation` is that of `state`.

    A group is the clients of one budget; its metrics are those of the model that they receive, or where each client
    has its own the mean of theirs, by held-out rows. `clients` has the accuracy of each, where there are classes.
    Clients that leave blocks out while they train (FedRA) are measured on the whole model: they train other blocks in
    every round, and what they are given to use is all of it.
    """
    groups = []
    accuracy: dict[int, float] = {}
    models = [(state.adapter, evaluation)]  # evaluated so far
    for (layers, ranks, memory), clients in by_budget(setup, state).items():
        if setup.experiment.method.personal:
            own = {client: evaluation.clients[client] for client in clients if client in evaluation.clients}
            metrics = evaluation.mean_over(own)
            accuracy |= {client: values["accuracy"] for client, values in own.items() if "accuracy" in values}
        else:
            found = evaluation_of(received(setup, state, ranks), models, setup)
            metrics = found.metrics
            accuracy |= expected_accuracy(setup, clients, found.per_class.recall)
        rank = ranks[0] if len(set(ranks)) == 1 else list(ranks)
        group = {"layers": layers, "rank": rank, "clients": len(clients), "metrics": metrics}
        groups.append(group | ({"memory_bytes": memory} if memory else {}))
    return {
        "groups": groups,
        "clients": {str(client): accuracy[client] for client in sorted(accuracy)},
        "worst_client": min(accuracy.values(), default=None),
    }


def by_budget(setup: Setup, state: ServerState) -> dict[tuple[int, Ranks, int], list[int]]:
    """Group the ids of clients by budget (layers, ranks, bytes of memory or 0), the smallest budget first.

    Where clients prune their ranks (HetLoRA), what is left of the budget counts.
    """
    spec = setup.base.spec
    context = setup.federation.context(state).of("allocator", state)
    pruned = setup.federation.method.allocator.limits(context)
    groups: dict[tuple[int, Ranks, int], list[int]] = {}
    for profile in setup.federation.fleet:
        limit = pruned.get(profile.id, spec.max_rank)
        ranks = tuple(profile.budget.ranks(spec.num_layers, limit).tolist())
        key = (profile.budget.capacity(spec.num_layers), ranks, profile.budget.memory_bytes or 0)
        groups.setdefault(key, []).append(profile.id)
    return dict(sorted(groups.items()))


def received(setup: Setup, state: ServerState, ranks: Ranks) -> Adapter:
    """Return what a client gets that trains the first components of all layers; the global adapter if it has none."""
    spec = setup.base.spec
    row = np.arange(spec.max_rank) < np.array(ranks)[:, None]
    dispatcher = setup.federation.method.dispatcher
    with naming(dispatcher, state.round):
        context = setup.federation.context(state).of("dispatcher", state)
        return dispatcher.dispatch(context, state.adapter, row) if row.any() else state.adapter


def evaluation_of(adapter: Adapter, models: list[tuple[Adapter, Evaluation]], setup: Setup) -> Evaluation:
    """Evaluate the adapter on the test split; not again if it is among `models`, else it is added to them."""
    for known, evaluation in models:
        if acts_like(adapter, known):
            return evaluation
    models.append((adapter, setup.evaluate_on_test(adapter)))
    return models[-1][1]


def acts_like(one: Adapter, other: Adapter) -> bool:
    """Tell whether both change the base model in the same way, to the bit."""
    if one is other:
        return True
    mine, theirs = (replace(adapter, prototypes={}).tensors() for adapter in (one, other))
    return (
        mine.keys() == theirs.keys()
        and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
        and all(pair.scale == other.pairs[name].scale for name, pair in one.pairs.items())
    )


def expected_accuracy(setup: Setup, clients: Clients, recall: Mapping[int, float]) -> dict[int, float]:
    """Compute the accuracy of a model with this recall on each client's own mix of classes; no entry where none of its
    classes is in the test split, nor for a language model, nor where clients' data is their own.
    """
    parts = setup.work.parts
    if not recall or parts is None:
        return {}
    labels = np.asarray(setup.work.data["label"][:])
    accuracy = {}
    for client in clients:
        classes, counts = np.unique(labels[parts[client]], return_counts=True)
        weight = {int(c): int(n) for c, n in zip(classes, counts, strict=True) if int(c) in recall}
        if weight:
            accuracy[client] = sum(n * recall[c] for c, n in weight.items()) / sum(weight.values())
    return accuracy
