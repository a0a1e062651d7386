"""What every server optimizer in the folder must keep to, present and future."""

from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from factories import assert_is_a_strategy_file, bits, random_adapter, round_of, strategies, tiny_spec, variants
from torch import Tensor

import hellora.methods.server_optimizers
from hellora.core.state import StrategyState
from hellora.core.types import Adapter, LoraPair, Mask
from hellora.methods.server_optimizers.average import Average
from hellora.methods.strategies import ServerOptimizer

SPEC = tiny_spec()
OPTIMIZERS = [*variants(hellora.methods.server_optimizers, ServerOptimizer), Average(lr=0.7, momentum=0.9)]
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
BOTH, B = frozenset("AB"), frozenset("B")


def rounds() -> list[tuple[Mask, frozenset[str]]]:
    """What may move in each of a few rounds: always something, never everything; layer 1 only in the first."""
    rng = np.random.default_rng(0)
    rows = rng.random((5, SPEC.num_layers, SPEC.max_rank)) < 0.5
    rows[:, 0, 0], rows[:, 2, 3] = True, False
    rows[0, 1], rows[1:, 1] = True, False
    return list(zip(rows, (BOTH, BOTH, B, BOTH, B), strict=True))


def aggregated_of(adapter: Adapter, trained: Mask, factors: frozenset[str], seed: int) -> Adapter:
    """Other values where something may move, and the server's own elsewhere."""
    other, pairs = random_adapter(SPEC, seed), {}
    for name, pair in adapter.pairs.items():
        rows, new = torch.tensor(trained[SPEC.layer_of[name]]), other.pairs[name]
        A = torch.where(rows[:, None] & ("A" in factors), new.A, pair.A)
        pairs[name] = LoraPair(A, torch.where(rows[None, :] & ("B" in factors), new.B, pair.B), pair.scale)
    return Adapter(pairs, other.head)


def step(
    optimizer: ServerOptimizer,
    adapter: Adapter,
    state: StrategyState,
    round: int,
    trained: Mask,
    factors: frozenset[str],
) -> tuple[Adapter, StrategyState]:
    aggregated = aggregated_of(adapter, trained, factors, 100 + round)
    return optimizer.step(replace(round_of(adapter, SPEC, round=round), state=state), aggregated, trained, factors)


def resting(name: str, tensor: Tensor, trained: Mask, factors: frozenset[str]) -> Tensor:
    """What of a tensor, by flat name, a round does not move."""
    module, _, factor = name.rpartition(".lora_")
    if not module:
        return tensor[:0]
    rows = torch.tensor(~trained[SPEC.layer_of[module]] | (factor not in factors))
    return tensor[rows] if factor == "A" else tensor[:, rows]


@every_optimizer
def test_what_does_not_move_is_bit_identical_in_value_and_state(optimizer: ServerOptimizer) -> None:
    adapter: Adapter = random_adapter(SPEC, 0)
    state: StrategyState = {}
    flat = adapter.tensors()
    for round, (trained, factors) in enumerate(rounds()):
        after, state_after = step(optimizer, adapter, state, round, trained, factors)
        before = adapter.tensors()
        for name, new in after.tensors().items():
            assert bits({0: resting(name, new, trained, factors)}) == bits(
                {0: resting(name, before[name], trained, factors)}
            ), name
            assert (new != before[name]).any() == (resting(name, new, trained, factors).numel() < new.numel()), name
        for key, old in state.items():
            found = [name for name in flat if key.endswith(name) and old.shape == flat[name].shape]
            for name in found[:1]:
                assert bits({0: resting(name, state_after[key], trained, factors)}) == bits(
                    {0: resting(name, old, trained, factors)}
                ), key
        adapter, state = after, state_after


@every_optimizer
def test_inputs_are_not_mutated_and_results_are_as_a_checkpoint_would_load_them(optimizer: ServerOptimizer) -> None:
    adapter: Adapter = random_adapter(SPEC, 0)
    state: StrategyState = {}
    for round, (trained, factors) in enumerate(rounds()):
        aggregated = aggregated_of(adapter, trained, factors, 100 + round)
        inputs = [adapter.tensors(), aggregated.tensors(), dict(state)]
        before, row = [bits(tensors) for tensors in inputs], trained.copy()
        context = replace(round_of(adapter, SPEC, round=round), state=state)
        adapter, state = optimizer.step(context, aggregated, trained, factors)
        assert [bits(tensors) for tensors in inputs] == before
        assert np.array_equal(trained, row)
        for tensor in (*adapter.tensors().values(), *state.values()):
            assert tensor.is_contiguous()
        assert {tensor.dtype for tensor in adapter.tensors().values()} == {torch.float32}


@every_optimizer
def test_a_state_goes_through_a_checkpoint_bit_for_bit(optimizer: ServerOptimizer) -> None:
    kept: tuple[Adapter, StrategyState] = random_adapter(SPEC, 0), {}
    reloaded = kept
    for round, (trained, factors) in enumerate(rounds()):
        kept = step(optimizer, *kept, round, trained, factors)
        reloaded = step(optimizer, *reloaded, round, trained, factors)
        loaded = safetensors.torch.load(safetensors.torch.save(dict(reloaded[1])))  # refuses shared storage
        assert bits(loaded) == bits(kept[1])
        assert bits(reloaded[0].tensors()) == bits(kept[0].tensors())
        reloaded = reloaded[0], loaded


@every_optimizer
def test_where_nothing_moved_nothing_changes(optimizer: ServerOptimizer) -> None:
    adapter = random_adapter(SPEC, 0)
    nothing = np.zeros((SPEC.num_layers, SPEC.max_rank), dtype=bool)
    after, _ = optimizer.step(round_of(adapter, SPEC), adapter, nothing, BOTH)
    assert bits(after.tensors()) == bits(adapter.tensors())


@every_optimizer
def test_residual_and_prototypes_are_the_aggregators(optimizer: ServerOptimizer) -> None:
    adapter = random_adapter(SPEC, 0)
    trained, factors = rounds()[0]
    more = replace(random_adapter(SPEC, 1), residual=dict(random_adapter(SPEC, 2).pairs), prototypes={1: adapter})
    after, _ = optimizer.step(round_of(adapter, SPEC), more, trained, factors)
    assert after.residual is more.residual
    assert after.prototypes is more.prototypes


def test_one_documented_frozen_dataclass_per_module() -> None:
    for module, cls in strategies(hellora.methods.server_optimizers, ServerOptimizer):
        assert_is_a_strategy_file(module, cls)
