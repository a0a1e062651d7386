"""What every dispatcher in the folder must keep to, present and future."""

import numpy as np
import pytest
from factories import assert_is_a_strategy_file, bits, random_adapter, strategies, tiny_spec, variants

import hellora.dispatchers
from hellora.protocols import Dispatcher

SPEC = tiny_spec()
every_dispatcher = pytest.mark.parametrize("dispatcher", list(variants(hellora.dispatchers, Dispatcher)), ids=repr)


@every_dispatcher
def test_a_full_row_is_the_identity(dispatcher: Dispatcher) -> None:
    adapter = random_adapter(SPEC, 0)
    full = np.ones((SPEC.num_layers, SPEC.max_rank), dtype=bool)
    assert bits(dispatcher.dispatch(adapter, full, SPEC).tensors()) == bits(adapter.tensors())


@every_dispatcher
def test_inputs_are_not_mutated(dispatcher: Dispatcher) -> None:
    adapter = random_adapter(SPEC, 0)
    row = np.random.default_rng(0).random((SPEC.num_layers, SPEC.max_rank)) < 0.5
    dispatcher.dispatch(adapter, row, SPEC)
    assert bits(adapter.tensors()) == bits(random_adapter(SPEC, 0).tensors())


def test_one_documented_frozen_dataclass_per_module() -> None:
    for module, cls in strategies(hellora.dispatchers, Dispatcher):
        assert_is_a_strategy_file(module, cls)
