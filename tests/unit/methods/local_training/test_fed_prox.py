"""FedProx, both forms, against dense gradients in float64."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from factories import local_of, random_adapter, task_for, tiny_spec
from torch import Tensor
from torch.testing import assert_close

from hellora.core.exchange import ClientTask, Declared, Factors
from hellora.methods.local import Local, Shapes
from hellora.methods.local_training.fed_prox import FedProx, Form, squared_distance

SPEC = tiny_spec()
ROW = np.array([[True, True, False, False], [False] * 4, [False, True, True, True]])
MU = 0.3


def task(factors: Factors = "both") -> ClientTask:
    return replace(task_for(0, random_adapter(SPEC, 0), ROW), factors=factors)


def moved(local: Local, seed: int = 1, size: float = 0.5) -> Local:
    """The same after some training."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in local.parameters.values():
            parameter += size * torch.randn(parameter.shape, generator=rng)
    return local


def reference(local: Local, form: Form) -> tuple[Tensor, dict[str, Tensor]]:
    """The penalty and its gradients by flat name, from dense products."""
    now = {name: p.detach().double().requires_grad_() for name, p in local.parameters.items()}
    total = torch.zeros((), dtype=torch.float64)
    for name, value in now.items():
        if form == "factors" or name.startswith("head."):
            total = total + (value - local.received[name].double()).square().sum()
    if form == "product":
        for name, pair in local.pairs.items():
            A, B = (
                now.get(f"{name}.lora_A", pair.received.A.double()),
                now.get(f"{name}.lora_B", pair.received.B.double()),
            )
            before = pair.received.B.double() @ pair.received.A.double()
            total = total + (pair.scale * (B @ A - before)).square().sum()
    penalty = MU / 2 * total
    return penalty.detach(), dict(zip(now, torch.autograd.grad(penalty, list(now.values())), strict=True))


@pytest.mark.parametrize("form", ["factors", "product"])
@pytest.mark.parametrize("factors", ["both", "A", "B"])
def test_penalty_and_gradients_against_dense_matrices(form: Form, factors: Factors) -> None:
    local = moved(local_of(task(factors), SPEC))
    penalty = FedProx(MU, form).penalty(local)
    assert penalty is not None
    penalty.backward()
    expected, gradients = reference(local, form)
    assert_close(penalty.detach().double(), expected, rtol=1e-5, atol=0)
    assert {name.endswith("lora_A") for name in gradients} == {factors != "B", False}
    for name, parameter in local.parameters.items():
        assert parameter.grad is not None
        assert_close(parameter.grad.double(), gradients[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["factors", "product"])
def test_what_was_received_is_not_pulled(form: Form) -> None:
    local = local_of(task(), SPEC)
    penalty = FedProx(MU, form).penalty(local)
    assert penalty is not None
    penalty.backward()
    assert penalty.item() == 0.0
    assert not any(p.grad.any() for p in local.parameters.values() if p.grad is not None)


def test_the_product_form_does_not_see_a_change_of_gauge() -> None:
    """B and A by 4 and 1/4 leave B A as it is, exactly; of the head each form sees all."""
    local = local_of(task(), SPEC)
    with torch.no_grad():
        for pair in local.pairs.values():
            pair.A.mul_(0.25)
            pair.B.mul_(4.0)
    for pair in local.pairs.values():
        assert squared_distance(pair).item() == pytest.approx(0.0, abs=1e-3)
    product, factors = FedProx(MU, "product").penalty(local), FedProx(MU, "factors").penalty(local)
    assert product is not None
    assert factors is not None
    assert product.item() < 1e-3 < 1.0 < factors.item()


def test_a_small_change_does_not_cancel() -> None:
    """A change of 1e-4 of numbers of about 1: three Gram matrices in float32 would leave rounding errors."""
    local = moved(local_of(task(), SPEC), size=1e-4)
    penalty = FedProx(MU, "product").penalty(local)
    assert penalty is not None
    assert penalty.item() == pytest.approx(float(reference(local, "product")[0]), rel=1e-3)


def test_strength_0_asks_for_nothing() -> None:
    local, shapes = local_of(task(), SPEC), Shapes(SPEC, ROW)
    assert FedProx(mu=0).penalty(local) is None
    assert FedProx(mu=0).declares(shapes) == Declared()
    trained = sum(spec.num_bytes for spec in shapes.trained_tensors().values())
    assert FedProx().declares(shapes) == Declared(scratch_bytes=2 * trained)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mu": -0.1}, "mu must not be negative, but it is -0.1"),
        ({"mu": float("nan")}, "mu must not be negative"),
        ({"form": "dense"}, "form must be one of factors, product, not 'dense'"),
    ],
)
def test_settings_are_checked(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedProx(**wrong)
