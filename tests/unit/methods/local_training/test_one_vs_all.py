"""One against all: binary losses against their formula in numpy."""

import numpy as np
import pytest
import torch
from factories import local_of, random_adapter, task_for, tiny_spec

from hellora.core.exchange import Outputs
from hellora.methods.demands import CLASSES, REPLACES_LOSS
from hellora.methods.local_training.one_vs_all import OneVsAll

SPEC = tiny_spec()
LOCAL = local_of(task_for(0, random_adapter(SPEC, 0), np.ones((3, 4), dtype=bool)), SPEC)
LABELS = [0, 2, 1, -100]


def outputs_of() -> Outputs:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return Outputs(torch.full((4,), 9.0), torch.ones(4), logits.argmax(1), logits, torch.tensor(LABELS))


def test_the_loss_and_its_gradient_against_numpy() -> None:
    """−log σ(z_y) − Σ_{c ≠ y} log(1 − σ(z_c)), with the gradient σ(z) − [y = c]; 0 of an example without a class."""
    outputs = outputs_of()
    got = OneVsAll().outputs(LOCAL, outputs)
    assert outputs.logits is not None
    z = outputs.logits.detach().double().numpy()
    p, is_class = 1 / (1 + np.exp(-z)), np.array([[y == c for c in range(3)] for y in LABELS])
    expected = -np.where(is_class, np.log(p), np.log(1 - p)).sum(1)
    expected[3] = 0.0
    np.testing.assert_allclose(got.loss_sums.detach().numpy(), expected, rtol=1e-5)
    (gradient,) = torch.autograd.grad(got.loss_sums.sum(), outputs.logits)
    wanted = p - is_class
    wanted[3] = 0.0
    np.testing.assert_allclose(gradient.numpy(), wanted, rtol=1e-4, atol=1e-6)
    assert got.weights is outputs.weights
    assert got.predictions is outputs.predictions


def test_classes_do_not_compete() -> None:
    """Another logit of one class changes the gradient of that class alone, which no softmax does."""
    gradients = []
    for change in (0.0, 3.0):
        outputs = outputs_of()
        assert outputs.logits is not None
        with torch.no_grad():
            outputs.logits[:, 1] += change
        got = OneVsAll().outputs(LOCAL, outputs)
        gradients.append(torch.autograd.grad(got.loss_sums.sum(), outputs.logits)[0])
    assert torch.equal(gradients[0][:, [0, 2]], gradients[1][:, [0, 2]])
    assert not torch.equal(gradients[0][:3, 1], gradients[1][:3, 1])


def test_very_sure_logits_have_finite_losses() -> None:
    logits = torch.tensor([[500.0, -500.0], [-500.0, 500.0]])
    outputs = Outputs(torch.zeros(2), torch.ones(2), None, logits, torch.tensor([0, 0]))
    assert OneVsAll().outputs(LOCAL, outputs).loss_sums.tolist() == [0.0, 1000.0]


def test_it_needs_classes_and_is_the_only_loss() -> None:
    assert OneVsAll().demands.needs == {CLASSES}
    assert OneVsAll().demands.takes == {REPLACES_LOSS}
    with pytest.raises(ValueError, match="one_vs_all needs a task that tells logits and labels"):
        OneVsAll().outputs(LOCAL, Outputs(torch.zeros(1), torch.ones(1)))
