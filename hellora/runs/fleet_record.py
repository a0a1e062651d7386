"""The file clients.json says who takes part in a run, what each can afford, and where it is known what its data are.

{"clients": [{"id": 0, "name": "clinic", "examples": 120, "budget": {"layers": 2}, "labels": {"sea": 80, "sky": 40}}]}

A deployment has names, and no labels: its server never sees them. A simulation has labels where there are classes.
"""

from dataclasses import asdict
from fractions import Fraction
from typing import Any

import numpy as np

from hellora.core.types import Budget
from hellora.experiments.setup import Setup


def fleet_record(setup: Setup) -> dict[str, Any]:
    """Return the content of clients.json, as JSON values, in the order of ids."""
    names, counts = list(setup.clients), label_counts(setup)
    num_layers = setup.federation.spec.num_layers
    records = []
    for profile in setup.federation.fleet:
        record: dict[str, Any] = {"id": profile.id}
        record |= {"name": names[profile.id]} if names else {}
        record |= {"examples": profile.num_examples, "budget": given(profile.budget, num_layers)}
        record |= {"labels": counts[profile.id]} if counts else {}
        records.append(record)
    return {"clients": records}


def given(budget: Budget, num_layers: int) -> dict[str, Any]:
    """Return the limits that a budget has, a share of the layers as their number."""
    limits = {name: limit for name, limit in asdict(budget).items() if limit is not None}
    return limits | ({"layers": budget.capacity(num_layers)} if isinstance(budget.layers, Fraction) else {})


def label_counts(setup: Setup) -> list[dict[str, int]]:
    """Count each simulated client's training examples of each class or label, by id; [] where there is nothing to
    count."""
    names, parts, data = setup.corpus.labels, setup.work.parts, setup.work.data
    if parts is None or not names or not {"label", "targets"} & {*data.column_names}:
        return []
    if "targets" not in data.column_names:
        labels = np.asarray(data["label"][:])
        counts = [np.bincount(labels[part], minlength=len(names)).tolist() for part in parts]
    elif (has := np.asarray(data["targets"][:])).dtype.kind == "f":  # numbers
        return []
    else:
        counts = [has[part].sum(0).tolist() for part in parts]
    return [{name: n for name, n in zip(names, row, strict=True) if n} for row in counts]
