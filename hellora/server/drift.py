"""Measure how clients drift apart in a round: how far each moved, and how much in the direction of all.

    norm_k    ‖δ_k‖,  δ_k = trained − received
    cosine_k  ⟨δ_k, δ̄⟩ / (‖δ_k‖ ‖δ̄‖)      δ̄ over the components that client k trained

δ̄ is the mean of δ, by rank component, over the clients that trained the component; the head is among it. Where clients
agree cosines are near 1. They fall with label skew (Karimireddy et al., ICML 2020, call it client drift).
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hellora.core.algebra import components, trained_components
from hellora.core.types import AdapterSpec
from hellora.methods.contributions import component_mean
from hellora.methods.strategies import Answers

Deltas = Sequence[tuple[int, Tensor, Tensor]]  # client; its rows of the whole, (rows,) bool; what moved of them, (_, d)


def drift(answers: Answers, spec: AdapterSpec) -> dict[int, dict[str, float]]:
    """Return `delta_norm` and `delta_cosine` of each client; no cosine where it, or the mean, did not move."""
    sums = {update.client: torch.zeros(3, dtype=torch.float64) for _, update in answers}
    for deltas in (*of_pairs(answers, spec), *of_head(answers)):  # one tensor of all clients after the other
        _, rows, moved = deltas[0]
        blank = torch.zeros(len(rows), moved.shape[1], dtype=torch.float64)
        mean = component_mean(blank, [(rows, moved, 1.0) for _, rows, moved in deltas])
        for client, rows, moved in deltas:
            delta, common = moved.double().flatten(), (mean if rows.all() else mean[rows]).flatten()
            sums[client] += torch.stack([delta @ delta, delta @ common, common @ common])
    found: dict[int, dict[str, float]] = {}
    for client, (squares, inner, whole) in ((client, each.tolist()) for client, each in sums.items()):
        found[client] = {"delta_norm": float(f"{math.sqrt(squares):.6g}")}
        if squares * whole > 0:
            found[client]["delta_cosine"] = round(inner / math.sqrt(squares * whole), 6)
    return found


def of_pairs(answers: Answers, spec: AdapterSpec) -> Iterator[Deltas]:
    """Yield what moved of each factor that somebody trained, by rank component: of A, and of B transposed."""
    for module in spec.modules:
        A, B = [], []
        for task, update in answers:
            if (after := update.adapter.pairs.get(module.name)) is None:
                continue
            row, sent = task.trained[module.layer], task.adapter.pairs[module.name]
            before = components(sent, trained_components(sent, row, task.cut))
            A.append((task.client, torch.tensor(row), after.A - before.A))
            B.append((task.client, torch.tensor(row), (after.B - before.B).T))
        yield from [A, B] if A else []


def of_head(answers: Answers) -> Iterator[Deltas]:
    """Yield what moved of each tensor of the head, as one row."""
    whole = torch.ones(1, dtype=torch.bool)
    for name in answers[0][1].adapter.head if answers else ():
        yield [(t.client, whole, (u.adapter.head[name] - t.adapter.head[name]).reshape(1, -1)) for t, u in answers]
