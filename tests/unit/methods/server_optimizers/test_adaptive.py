"""FedAvgM, FedAdam, FedYogi and FedAdagrad over several rounds, against Algorithm 2 of Reddi et al. in numpy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from factories import random_adapter, round_of, tiny_spec

from hellora.core.state import StrategyState
from hellora.methods.demands import LASTING_COMPONENTS, LONE_ADAPTER
from hellora.methods.server_optimizers.average import Average
from hellora.methods.server_optimizers.fed_adagrad import FedAdagrad
from hellora.methods.server_optimizers.fed_adam import FedAdam
from hellora.methods.server_optimizers.fed_yogi import FedYogi
from hellora.methods.strategies import ServerOptimizer

Floats = npt.NDArray[np.float64]
Second = Callable[[Floats, Floats], Floats]  # v and Δ to the next v
SPEC = tiny_spec()
ROUNDS = 4


def adaptive(lr: float, beta1: float, tau: float, second: Second) -> Callable[[Floats, list[Floats]], Floats]:
    """The step of Algorithm 2, which goes on in the moments that it is given: m, v; none at first."""

    def step(delta: Floats, moments: list[Floats]) -> Floats:
        m, v = moments or [np.zeros_like(delta), np.full_like(delta, tau**2)]
        moments[:] = [beta1 * m + (1 - beta1) * delta, second(v, delta)]
        return lr * moments[0] / (np.sqrt(moments[1]) + tau)

    return step


def heavy_ball(lr: float, momentum: float) -> Callable[[Floats, list[Floats]], Floats]:
    def step(delta: Floats, moments: list[Floats]) -> Floats:
        moments[:] = [momentum * (moments or [np.zeros_like(delta)])[0] + delta]
        return lr * moments[0]

    return step


@pytest.mark.parametrize(
    ("optimizer", "step"),
    [
        (Average(lr=0.7, momentum=0.9), heavy_ball(0.7, 0.9)),
        (FedAdam(0.1, 0.9, 0.99, 1e-3), adaptive(0.1, 0.9, 1e-3, lambda v, d: 0.99 * v + (1 - 0.99) * d**2)),
        (FedAdam(0.3, 0.0, 0.5, 0.1), adaptive(0.3, 0.0, 0.1, lambda v, d: 0.5 * v + 0.5 * d**2)),
        (
            FedYogi(0.1, 0.8, 0.9, 1e-2),
            adaptive(0.1, 0.8, 1e-2, lambda v, d: v - (1 - 0.9) * d**2 * np.sign(v - d**2)),
        ),
        (FedAdagrad(0.1, 0.3, 1e-3), adaptive(0.1, 0.3, 1e-3, lambda v, d: v + d**2)),
        (FedAdagrad(), adaptive(1e-2, 0.0, 1e-3, lambda v, d: v + d**2)),
    ],
    ids=lambda value: repr(value) if isinstance(value, ServerOptimizer) else "",
)
def test_several_rounds_against_the_reference(optimizer: ServerOptimizer, step: Any) -> None:
    """Every round moves other components, and in one of them B alone: what rests keeps value and moments."""
    rng = np.random.default_rng(0)
    start = random_adapter(SPEC, 0)
    values = {name: tensor.double().numpy().copy() for name, tensor in start.tensors().items()}
    moments: dict[str, dict[Any, list[Floats]]] = {name: {} for name in values}
    adapter, state = start, {}
    for round in range(ROUNDS):
        trained = rng.random((SPEC.num_layers, SPEC.max_rank)) < 0.6
        trained[0, 0] = True
        factors = frozenset("B" if round == 2 else "AB")
        aggregated = random_adapter(SPEC, 10 + round)
        context = replace(round_of(adapter, SPEC, round=round), state=state)
        adapter, state = optimizer.step(context, aggregated, trained, factors)
        for name, target in aggregated.tensors().items():
            module, _, factor = name.rpartition(".lora_")
            for place in np.ndindex(tuple(target.shape)):
                component = place[0] if factor == "A" else place[-1]
                if not module or (trained[SPEC.layer_of[module], component] and factor in factors):
                    delta = np.array(float(target[place]) - values[name][place])
                    moved = values[name][place] + step(delta, moments[name].setdefault(place, []))
                    values[name][place] = np.float32(moved)
        for name, tensor in adapter.tensors().items():
            np.testing.assert_allclose(tensor.double().numpy(), values[name], rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("optimizer", [FedAdam(), FedYogi(), FedAdagrad()], ids=repr)
def test_moments_are_float64_and_begin_at_0_and_tau_squared(optimizer: Any) -> None:
    trained = np.zeros((SPEC.num_layers, SPEC.max_rank), dtype=bool)
    trained[0, 1] = True
    state: StrategyState = {}
    context = replace(round_of(random_adapter(SPEC, 0), SPEC), state=state)
    _, state = optimizer.step(context, random_adapter(SPEC, 1), trained, frozenset("AB"))
    assert {tensor.dtype for tensor in state.values()} == {torch.float64}
    assert {name.partition("/")[0] for name in state} == {"m", "v"}
    resting = "block.1.query.lora_A"
    assert not state[f"m/{resting}"].any()
    assert (state[f"v/{resting}"] == optimizer.tau**2).all()


@pytest.mark.parametrize("optimizer", [FedAdam(), FedYogi(), FedAdagrad()], ids=repr)
def test_what_they_need(optimizer: ServerOptimizer) -> None:
    assert optimizer.demands.needs == {LASTING_COMPONENTS, LONE_ADAPTER}


@pytest.mark.parametrize("cls", [FedAdam, FedYogi, FedAdagrad])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": 0.0}, "lr and tau must be greater than 0"),
        ({"lr": float("nan")}, "lr and tau must be greater than 0"),
        ({"tau": 0.0}, "lr and tau must be greater than 0"),
        ({"beta1": 1.0}, "beta1"),
        ({"beta1": -0.1}, "beta1"),
    ],
)
def test_settings_are_checked(cls: Any, wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**wrong)


@pytest.mark.parametrize("cls", [FedAdam, FedYogi])
def test_the_second_momentum_is_checked(cls: Any) -> None:
    with pytest.raises(ValueError, match="beta1 and beta2 must be in"):
        cls(beta2=1.0)
