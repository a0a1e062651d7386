"""What every dispatcher in the folder must keep to, present and future."""

import numpy as np
import pytest
from factories import (
    LargestTensor,
    assert_is_a_strategy_file,
    bits,
    dispatched,
    random_adapter,
    strategies,
    tiny_spec,
    variants,
)

import hellora.methods.dispatchers
from hellora.core.types import AdapterSpec, ModuleSpec
from hellora.methods.strategies import Dispatcher

SPEC = tiny_spec()
every_dispatcher = pytest.mark.parametrize(
    "dispatcher", list(variants(hellora.methods.dispatchers, Dispatcher)), ids=repr
)


@every_dispatcher
def test_a_full_row_is_the_identity(dispatcher: Dispatcher) -> None:
    adapter = random_adapter(SPEC, 0)
    full = np.ones((SPEC.num_layers, SPEC.max_rank), dtype=bool)
    assert bits(dispatched(dispatcher, adapter, full, SPEC).tensors()) == bits(adapter.tensors())


@every_dispatcher
def test_inputs_are_not_mutated(dispatcher: Dispatcher) -> None:
    adapter = random_adapter(SPEC, 0)
    row = np.random.default_rng(0).random((SPEC.num_layers, SPEC.max_rank)) < 0.5
    dispatched(dispatcher, adapter, row, SPEC)
    assert bits(adapter.tensors()) == bits(random_adapter(SPEC, 0).tensors())


@every_dispatcher
def test_no_dense_matrix_is_ever_built(dispatcher: Dispatcher) -> None:
    spec = AdapterSpec((ModuleSpec("m", 0, d_in=50, d_out=60),), ("layer",), max_rank=4, scale=2.0)
    adapter = random_adapter(spec, 0)
    with LargestTensor() as largest:
        dispatched(dispatcher, adapter, np.array([[True, True, False, False]]), spec)
    assert largest.elements < 50 * 60


def test_one_documented_frozen_dataclass_per_module() -> None:
    for module, cls in strategies(hellora.methods.dispatchers, Dispatcher):
        assert_is_a_strategy_file(module, cls)
