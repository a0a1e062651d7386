"""Logit adjustment against cross-entropy in numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from factories import local_of, random_adapter, task_for, tiny_spec

from hellora.core.exchange import Outputs
from hellora.methods.demands import CLASSES, REPLACES_LOSS
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


# ------------------------------------------------------------------------------------------------- the published others


def losses_of(z: Any, labels: list[int]) -> list[float]:
    """The cross-entropy of logits in float64, 0 for an example without a class."""
    return [0.0 if y < 0 else float(np.log(np.exp(row).sum()) - row[y]) for row, y in zip(z, labels, strict=True)]


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_fedlc_moves_the_classes_that_are_there_and_masks_the_others(tau: float) -> None:
    labels = [0, 2, 2, 0, -100]
    outputs = outputs_of(labels)
    got = LogitAdjustment(tau, adjustment="fedlc").outputs(local_of(TASK, SPEC, labels=OWN), outputs)
    assert outputs.logits is not None
    z = outputs.logits.detach().double().numpy()
    there = z[:, [0, 2]] - tau * np.array([5.0, 2.0]) ** -0.25
    expected = losses_of(there, [{0: 0, 2: 1, -100: -100}[y] for y in labels])
    np.testing.assert_allclose(got.loss_sums.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(got.loss_sums.sum(), outputs.logits)
    assert gradient[:, [1, 3]].abs().max() == 0.0, "an absent class must not be unlearned"
    softmax = np.exp(there) / np.exp(there).sum(1, keepdims=True)
    np.testing.assert_allclose(gradient[0, [0, 2]].numpy(), softmax[0] - [1.0, 0.0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [0.5, 0.0, 0.9])
def test_fedrs_scales_the_logits_of_absent_classes(scale: float) -> None:
    labels = [0, 2, 2, 0, -100]
    outputs = outputs_of(labels)
    rule = LogitAdjustment(adjustment="fedrs", absent_scale=scale)
    got = rule.outputs(local_of(TASK, SPEC, labels=OWN), outputs)
    assert outputs.logits is not None
    z = outputs.logits.detach().double().numpy() * np.array([1.0, scale, 1.0, scale])
    np.testing.assert_allclose(got.loss_sums.detach().numpy(), losses_of(z, labels), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(got.loss_sums.sum(), outputs.logits)
    softmax = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    np.testing.assert_allclose(gradient[0, 1].item(), scale * softmax[0, 1], rtol=1e-4, atol=1e-6)


def test_with_one_class_fedlc_has_nothing_left_to_learn_and_no_nan() -> None:
    outputs = outputs_of([2, 2, -100])
    rule = LogitAdjustment(adjustment="fedlc")
    got = rule.outputs(local_of(TASK, SPEC, labels=torch.tensor([2, 2, 2])), outputs)
    assert got.loss_sums.tolist() == [0.0, 0.0, 0.0]
    assert outputs.logits is not None
    (gradient,) = torch.autograd.grad(got.loss_sums.sum(), outputs.logits)
    assert gradient.abs().max() == 0.0


@pytest.mark.parametrize("adjustment", ["prior", "fedlc", "fedrs"])
def test_a_client_without_any_class_has_the_tasks_loss_of_0(adjustment: Any) -> None:
    outputs = outputs_of([-100, -100])
    local = local_of(TASK, SPEC, labels=torch.tensor([-100, -100]))
    assert LogitAdjustment(adjustment=adjustment).outputs(local, outputs) is outputs


def test_at_their_strength_0_the_others_are_what_the_task_said() -> None:
    outputs = outputs_of([0, 1])
    for rule in (LogitAdjustment(0, adjustment="fedlc"), LogitAdjustment(adjustment="fedrs", absent_scale=1.0)):
        assert rule.outputs(local_of(TASK, SPEC), outputs) is outputs
        assert not rule.demands.takes
    assert LogitAdjustment(adjustment="fedlc").demands.takes == {REPLACES_LOSS}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"adjustment": "menon"}, "adjustment must be one of prior, fedlc, fedrs, not 'menon'"),
        ({"adjustment": "fedrs", "absent_scale": 1.5}, r"absent_scale must be in \[0, 1\], not 1.5"),
        ({"adjustment": "fedrs", "tau": 0.5}, "tau is a setting of adjustment = 'prior' or 'fedlc', not of 'fedrs'"),
        ({"adjustment": "fedlc", "added_count": 2.0}, "added_count is a setting of adjustment = 'prior', not of"),
        ({"absent_scale": 0.1}, "absent_scale is a setting of adjustment = 'fedrs', not of 'prior': remove it"),
    ],
)
def test_a_setting_of_another_form_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogitAdjustment(**wrong)
