"""Drift of clients against vectors written out in full."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import random_adapter, task_for, tiny_spec, update_of

from hellora.core.types import Adapter
from hellora.methods.strategies import Answers
from hellora.server.drift import drift

SPEC = tiny_spec()
GLOBAL = random_adapter(SPEC, seed=1000)


def answers_of(ranks: list[list[int]]) -> Answers:
    tasks = [
        task_for(client, GLOBAL, np.arange(SPEC.max_rank) < np.array(rows)[:, None])
        for client, rows in enumerate(ranks)
    ]
    return [(task, update_of(task, random_adapter(SPEC, task.client), SPEC)) for task in tasks]


def spread(adapter: Adapter, ranks: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """What moved, as one long vector over all that can, and where."""
    values, places = [], []
    for module in SPEC.modules:
        rank, old = ranks[module.layer], GLOBAL.pairs[module.name]
        A, B = torch.zeros_like(old.A), torch.zeros_like(old.B)
        if rank:
            A[:rank] = adapter.pairs[module.name].A - old.A[:rank]
            B[:, :rank] = adapter.pairs[module.name].B - old.B[:, :rank]
        here = torch.arange(SPEC.max_rank) < rank
        values += [A.flatten(), B.flatten()]
        places += [here[:, None].expand_as(A).flatten(), here[None].expand_as(B).flatten()]
    for name, old in GLOBAL.head.items():
        values.append((adapter.head[name] - old).flatten())
        places.append(torch.ones(old.numel(), dtype=torch.bool))
    return torch.cat(values).double(), torch.cat(places)


def test_drift_is_that_of_long_vectors() -> None:
    ranks = [[4, 0, 2], [1, 0, 4], [3, 0, 0]]
    answers = answers_of(ranks)
    vectors, places = zip(*[spread(u.adapter, r) for (_, u), r in zip(answers, ranks, strict=True)], strict=True)
    mean = torch.stack(vectors).sum(0) / torch.stack(places).sum(0).clamp(min=1)
    found = drift(answers, SPEC)
    for client, (vector, place) in enumerate(zip(vectors, places, strict=True)):
        norm, whole = float(vector.norm()), float((mean * place).norm())
        assert found[client]["delta_norm"] == pytest.approx(norm, rel=1e-5)
        assert found[client]["delta_cosine"] == pytest.approx(float(vector @ mean) / norm / whole, abs=2e-6)


def test_clients_that_agree_have_a_cosine_of_one_and_opposites_none() -> None:
    (task, update), *_ = answers_of([[4, 4, 4]])
    same = [(replace(task, client=k), replace(update, client=k)) for k in (0, 1)]
    assert [each["delta_cosine"] for each in drift(same, SPEC).values()] == [1.0, 1.0]
    still = replace(update, client=1, adapter=replace(update.adapter, pairs=task.adapter.pairs, head=task.adapter.head))
    found = drift([same[0], (same[1][0], still)], SPEC)
    assert found[1] == {"delta_norm": 0.0}
    assert found[0]["delta_cosine"] == 1.0
    assert math.isfinite(found[0]["delta_norm"])
