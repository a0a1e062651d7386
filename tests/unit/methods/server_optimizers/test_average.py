"""FedAvg and FedAvgM, in numbers worked by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import bits, random_adapter, round_of, tiny_spec

from hellora.core.state import StrategyState
from hellora.core.types import Adapter, AdapterSpec, LoraPair, Mask, ModuleSpec
from hellora.methods.demands import LASTING_COMPONENTS, LONE_ADAPTER
from hellora.methods.server_optimizers.average import Average

SPEC = AdapterSpec((ModuleSpec("m", 0, d_in=1, d_out=1), ModuleSpec("n", 1, d_in=1, d_out=1)), ("0", "1"), 2, 1.0)
FIRST_ONLY = np.array([[True, False], [False, False]])


def adapter(m: list[float], n: list[float], head: float) -> Adapter:
    """A and B of a module hold the same two values, one per rank component."""
    pairs = {name: LoraPair(torch.tensor([v]).T, torch.tensor([v]), 1.0) for name, v in (("m", m), ("n", n))}
    return Adapter(pairs, {"bias": torch.tensor([head])})


def values(adapter: Adapter) -> list[float]:
    """m's two components, n's two, and the head; A and B must agree."""
    for pair in adapter.pairs.values():
        assert pair.A.flatten().tolist() == pair.B.flatten().tolist()
    return [v for pair in adapter.pairs.values() for v in pair.A.flatten().tolist()] + adapter.head["bias"].tolist()


def stepped(
    optimizer: Average,
    start: Adapter,
    aggregated: Adapter,
    trained: Mask,
    state: StrategyState,
    spec: AdapterSpec,
    factors: frozenset[str] = frozenset("AB"),
) -> tuple[Adapter, StrategyState]:
    return optimizer.step(replace(round_of(start, spec), state=state), aggregated, trained, factors)


START = adapter([1.0, 2.0], [3.0, 4.0], 10.0)
AGGREGATED = adapter([5.0, 2.0], [3.0, 4.0], 14.0)  # component 0 of m moves by 4, the head by 4


def test_lr_1_takes_the_aggregated_adapter_as_it_is() -> None:
    result, velocity = stepped(Average(), START, AGGREGATED, FIRST_ONLY, {}, SPEC)
    assert bits(result.tensors()) == bits(AGGREGATED.tensors())
    assert velocity == {}


def test_lr() -> None:
    result, velocity = stepped(Average(lr=0.5), START, AGGREGATED, FIRST_ONLY, {}, SPEC)
    assert values(result) == [3.0, 2.0, 3.0, 4.0, 12.0]
    assert velocity == {}


def test_momentum_over_two_steps() -> None:
    step = Average(lr=0.5, momentum=0.5)
    once, velocity = stepped(step, START, AGGREGATED, FIRST_ONLY, {}, SPEC)
    assert values(once) == [3.0, 2.0, 3.0, 4.0, 12.0]  # v = 4
    assert velocity["m.lora_A"].flatten().tolist() == velocity["m.lora_B"].flatten().tolist() == [4.0, 0.0]
    both = np.array([[True, True], [False, False]])
    twice, velocity = stepped(step, once, adapter([5.0, 4.0], [3.0, 4.0], 12.0), both, velocity, SPEC)
    # m0: v = 0.5 · 4 + 2 = 4;  m1: v = 2;  head: v = 0.5 · 4 + 0 = 2
    assert values(twice) == [5.0, 3.0, 3.0, 4.0, 13.0]
    assert velocity["m.lora_A"].flatten().tolist() == [4.0, 2.0]
    assert velocity["head.bias"].tolist() == [2.0]


def test_a_factor_left_alone_keeps_value_and_velocity() -> None:
    step = Average(lr=0.5, momentum=0.5)
    _, velocity = stepped(step, START, AGGREGATED, FIRST_ONLY, {}, SPEC)
    result, after = stepped(step, START, AGGREGATED, FIRST_ONLY, velocity, SPEC, frozenset("B"))
    assert result.pairs["m"].A.flatten().tolist() == [1.0, 2.0]
    assert result.pairs["m"].B.flatten().tolist() == [4.0, 2.0]  # v = 0.5 · 4 + 4 = 6
    assert torch.equal(after["m.lora_A"], velocity["m.lora_A"])
    assert after["m.lora_B"].flatten().tolist() == [6.0, 0.0]


def test_a_residual_is_taken_as_it_is() -> None:
    aggregated = replace(AGGREGATED, residual=START.pairs)
    result, _ = stepped(Average(lr=0.5), START, aggregated, FIRST_ONLY, {}, SPEC)
    assert bits(replace(result, pairs={}, head={}).tensors()) == bits(Adapter({}, residual=START.pairs).tensors())


def test_components_nobody_trained_keep_value_and_velocity() -> None:
    step = Average(lr=0.3, momentum=0.9)
    spec = tiny_spec()
    start, aggregated = random_adapter(spec, 1), random_adapter(spec, 2)
    velocity = {name: t.double() for name, t in random_adapter(spec, 3).tensors().items()}
    trained: Mask = np.random.default_rng(0).random((spec.num_layers, spec.max_rank)) < 0.5
    trained[1] = False
    result, after = stepped(step, start, aggregated, trained, velocity, spec)
    for module in spec.modules:
        row = torch.from_numpy(trained[module.layer])
        A, B = f"{module.name}.lora_A", f"{module.name}.lora_B"
        old, new = start.pairs[module.name], result.pairs[module.name]
        assert bits({0: new.A[~row], 1: new.B[:, ~row]}) == bits({0: old.A[~row], 1: old.B[:, ~row]})
        assert bits({0: after[A][~row], 1: after[B][:, ~row]}) == bits({0: velocity[A][~row], 1: velocity[B][:, ~row]})
        assert (new.A[row] != old.A[row]).all()
        assert (new.B[:, row] != old.B[:, row]).all()
        assert (after[A][row] != velocity[A][row]).all()
        assert (after[B][:, row] != velocity[B][:, row]).all()


def test_inputs_are_not_mutated() -> None:
    spec = tiny_spec()
    start, aggregated = random_adapter(spec, 1), random_adapter(spec, 2)
    velocity = {name: t.double() for name, t in random_adapter(spec, 3).tensors().items()}
    inputs = (start.tensors(), aggregated.tensors(), velocity)
    before = [bits(tensors) for tensors in inputs]
    trained = np.ones((spec.num_layers, spec.max_rank), dtype=bool)
    stepped(Average(lr=0.3, momentum=0.9), start, aggregated, trained, velocity, spec)
    assert [bits(tensors) for tensors in inputs] == before


@pytest.mark.parametrize(("lr", "momentum"), [(0.0, 0.0), (-1.0, 0.0), (float("nan"), 0.0), (1.0, 1.0), (1.0, -0.1)])
def test_settings_are_checked(lr: float, momentum: float) -> None:
    with pytest.raises(ValueError, match="lr must be greater than 0"):
        Average(lr, momentum)


def test_residual_and_prototypes_are_the_aggregators() -> None:
    residual, prototypes = {"m": START.pairs["n"]}, {1: AGGREGATED}
    aggregated = replace(AGGREGATED, residual=residual, prototypes=prototypes)
    for step in (Average(), Average(lr=0.5)):
        result, _ = stepped(step, START, aggregated, FIRST_ONLY, {}, SPEC)
        assert result.residual is residual
        assert result.prototypes is prototypes


def test_only_a_step_of_its_own_needs_anything_of_the_aggregator() -> None:
    assert not Average().demands.needs
    for optimizer in (Average(lr=0.5), Average(momentum=0.5)):
        assert optimizer.demands.needs == {LASTING_COMPONENTS, LONE_ADAPTER}
