"""What a client keeps of its step, by how many classes its examples amount to."""

import math

import numpy as np
import pytest
import torch
from factories import local_of, random_adapter, task_for, tiny_spec

from hellora.methods.local import Local
from hellora.methods.local_training.skew_damping import SkewDamping, effective_classes

SPEC = tiny_spec()
GLOBAL = random_adapter(SPEC, seed=1000)


def local(labels: list[int] | None) -> Local:
    task = task_for(0, GLOBAL, np.ones((SPEC.num_layers, SPEC.max_rank), dtype=bool))
    return local_of(task, SPEC, labels=None if labels is None else torch.tensor(labels))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([2, 2, 2], 1.0),
        ([0, 0, 1, 1], 2.0),
        ([0, 1, 2, 3], 4.0),
        ([0, 0, 0, 5], math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))),
        ([1, -100, -100], 1.0),
        ([-100], 1.0),
    ],
)
def test_effective_classes_by_hand(labels: list[int], classes: float) -> None:
    assert effective_classes(local(labels)) == pytest.approx(classes)


@pytest.mark.parametrize(("labels", "kept"), [([3, 3], 0.25), ([0, 1], 0.625), ([0, 1, 2, 3], 0.8125)])
def test_the_step_of_a_client_is_shortened(labels: list[int], kept: float) -> None:
    rule, mine = SkewDamping(), local(labels)
    before = {name: parameter.detach().clone() for name, parameter in mine.parameters.items()}
    carry = rule.begin(mine)
    with torch.no_grad():
        for parameter in mine.parameters.values():
            parameter += 1.0
        assert rule.end(mine, carry) == ({}, {})
    for name, parameter in mine.parameters.items():
        torch.testing.assert_close(parameter.detach(), before[name] + kept, rtol=1e-5, atol=1e-6)


def test_a_client_without_labels_and_a_share_that_is_none_are_refused() -> None:
    with pytest.raises(ValueError, match="data with labels"):
        SkewDamping().end(local(None), None)
    with pytest.raises(ValueError, match="least must be above 0"):
        SkewDamping(least=0)
