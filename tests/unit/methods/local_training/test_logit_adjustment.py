"""Logit adjustment against cross-entropy in numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from factories import local_of, random_adapter, task_for, tiny_spec

from hellora.core.exchange import Outputs
from hellora.methods.demands import CLASSES
from hellora.methods.local_training.logit_adjustment import LogitAdjustment

SPEC = tiny_spec()
TASK = task_for(0, random_adapter(SPEC, 0), np.ones((3, 4), dtype=bool))
OWN = torch.tensor([0, 0, 0, 0, 2, 2, -100, 0])  # classes of the client's examples: 5, 0, 2, 0 of four; one has none


def outputs_of(labels: list[int], seed: int = 0) -> Outputs:
    logits = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    losses = torch.full((len(labels),), 9.0)
    return Outputs(losses, torch.ones(len(labels)), logits.argmax(1), logits, torch.tensor(labels))


@pytest.mark.parametrize(("tau", "added_count"), [(1.0, 1.0), (0.5, 0.01), (2.0, 10.0)])
def test_the_loss_against_numpy(tau: float, added_count: float) -> None:
    labels = [0, 2, 1, 0, -100]
    outputs = outputs_of(labels)
    got = LogitAdjustment(tau, added_count).outputs(local_of(TASK, SPEC, labels=OWN), outputs)
    counts = np.array([5.0, 0.0, 2.0, 0.0]) + added_count
    assert outputs.logits is not None
    z = outputs.logits.detach().double().numpy() + tau * np.log(counts / counts.sum())
    expected = [0.0 if y < 0 else np.log(np.exp(row).sum()) - row[y] for row, y in zip(z, labels, strict=True)]
    np.testing.assert_allclose(got.loss_sums.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert got.weights is outputs.weights
    assert got.predictions is outputs.predictions
    assert got.logits is outputs.logits
    (gradient,) = torch.autograd.grad(got.loss_sums.sum(), outputs.logits)
    softmax = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    wanted = softmax - np.eye(4)[np.maximum(labels, 0)]
    wanted[-1] = 0.0
    np.testing.assert_allclose(gradient.numpy(), wanted, rtol=1e-4, atol=1e-6)


def test_a_client_with_equal_shares_has_the_plain_loss() -> None:
    outputs = outputs_of([0, 1, 2, 3])
    got = LogitAdjustment().outputs(local_of(TASK, SPEC, labels=torch.arange(4)), outputs)
    assert outputs.logits is not None
    plain = torch.nn.functional.cross_entropy(outputs.logits, torch.arange(4), reduction="none")
    torch.testing.assert_close(got.loss_sums, plain)


def test_strength_0_is_what_the_task_said() -> None:
    outputs = outputs_of([0, 1])
    assert LogitAdjustment(tau=0).outputs(local_of(TASK, SPEC), outputs) is outputs


def test_it_needs_classes_and_says_so_without_them() -> None:
    assert LogitAdjustment().demands.needs == {CLASSES}
    with pytest.raises(ValueError, match="needs a task that tells logits and labels, and data with labels"):
        LogitAdjustment().outputs(local_of(TASK, SPEC), outputs_of([0]))


@pytest.mark.parametrize("wrong", [{"tau": -1.0}, {"tau": float("nan")}, {"added_count": 0.0}])
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="tau must not be negative, and added_count must be greater than 0"):
        LogitAdjustment(**wrong)
