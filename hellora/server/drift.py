"""Measure how clients drift apart in a round: how far each moved, and how much in the direction of all.

    norm_k    ‖δ_k‖,  δ_k = trained − received
    cosine_k  ⟨δ_k, δ̄⟩ / (‖δ_k‖ ‖δ̄‖)      δ̄ over the components that client k trained

δ̄ is the mean of δ, by rank component, over the clients that trained the component; the head is among it. Where clients
agree cosines are near 1. They fall with label skew (Karimireddy et al., ICML 2020, call it client drift).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hellora.core.exchange import ClientTask, ClientUpdate
from hellora.core.types import AdapterSpec
from hellora.methods.local import Shapes, cut, put_back
from hellora.methods.sharing import answer_part
from hellora.methods.strategies import Answers

Deltas = Mapping[str, Tensor]  # by flat name, cut to the rank components that a client trained


def drift(answers: Answers, spec: AdapterSpec) -> dict[int, dict[str, float]]:
    """Return `delta_norm` and `delta_cosine` of each client; no cosine where it, or the mean, did not move."""
    deltas = {update.client: delta_of(task, update, spec) for task, update in answers}
    rows = {task.client: Shapes(spec, task.trained) for task, _ in answers}
    mean = mean_of(deltas, rows)
    found: dict[int, dict[str, float]] = {}
    for client, delta in deltas.items():
        pairs = [(d.double(), cut(mean[name], name, rows[client].rows(name))) for name, d in delta.items()]
        norm = math.sqrt(math.fsum(float(d.square().sum()) for d, _ in pairs))
        whole = math.sqrt(math.fsum(float(m.square().sum()) for _, m in pairs))
        found[client] = {"delta_norm": float(f"{norm:.6g}")}
        if norm * whole > 0:
            inner = math.fsum(float((d * m).sum()) for d, m in pairs)
            found[client]["delta_cosine"] = round(inner / (norm * whole), 6)
    return found


def delta_of(task: ClientTask, update: ClientUpdate, spec: AdapterSpec) -> Deltas:
    """Return what an update moved."""
    sent = answer_part(task, spec).tensors()
    return {name: tensor - sent[name] for name, tensor in update.adapter.tensors().items()}


def mean_of(deltas: Mapping[int, Deltas], rows: Mapping[int, Shapes]) -> dict[str, Tensor]:
    """Return the mean of all deltas with all rank components, in float64; 0 where nobody trained."""
    total: dict[str, Tensor] = {}
    count: dict[str, Tensor] = {}
    for client in sorted(deltas):
        shapes = rows[client]
        every = shapes.all_tensors()
        for name, delta in deltas[client].items():
            chosen = shapes.rows(name)
            size = delta.shape if chosen is None else every[name].shape
            blank = torch.zeros(size, dtype=torch.float64)
            total[name] = total.get(name, blank) + put_back(blank, delta.double(), name, chosen)
            count[name] = count.get(name, blank) + put_back(blank, torch.ones_like(delta).double(), name, chosen)
    return {name: total[name] / count[name].clamp(min=1) for name in total}
