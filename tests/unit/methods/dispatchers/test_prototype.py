"""What a client of some rank receives: its rank's prototype, or what stands in for it."""

from dataclasses import replace

import numpy as np
import pytest
from factories import bits, dispatched, random_adapter, tiny_spec

from hellora.core.algebra import prototype_of
from hellora.core.types import Adapter, Mask
from hellora.methods.dispatchers.prototype import Prototype

SPEC = tiny_spec()
OF_TWO = prototype_of(random_adapter(SPEC, 2), 2, SPEC)
ADAPTER = replace(random_adapter(SPEC, 0), prototypes={2: OF_TWO})


def row_of(*counts: int) -> Mask:
    return np.arange(SPEC.max_rank) < np.array(counts)[:, None]


def sent(row: Mask) -> Adapter:
    return dispatched(Prototype(), ADAPTER, row, SPEC)


@pytest.mark.parametrize("counts", [(2, 2, 2), (2, 0, 2)])
def test_a_client_of_rank_2_receives_that_prototype_whole(counts: tuple[int, ...]) -> None:
    """Head and all; a layer that it does not train acts in the prototype's rank."""
    assert bits(sent(row_of(*counts)).tensors()) == bits(OF_TWO.tensors())


def test_which_components_of_the_bank_are_allocated_makes_no_difference() -> None:
    row = np.array([[False, True, False, True]] * 3)
    assert bits(sent(row).tensors()) == bits(OF_TWO.tensors())


def test_a_layer_of_a_smaller_rank_has_the_first_components() -> None:
    got = sent(row_of(1, 2, 0))
    for module in SPEC.modules:
        count = (1, 2, 2)[module.layer]
        whole = OF_TWO.pairs[module.name]
        assert bits({0: got.pairs[module.name].A, 1: got.pairs[module.name].B}) == bits(
            {0: whole.A[:count], 1: whole.B[:, :count]}
        )


@pytest.mark.parametrize("counts", [(3, 3, 3), (1, 1, 1), (4, 4, 4), (4, 2, 0)])
def test_without_a_prototype_of_its_own_it_is_the_truncated_bank(counts: tuple[int, ...]) -> None:
    """As it is for everybody before round 0. A frozen layer acts in the client's rank."""
    row = row_of(*counts)
    assert bits(sent(row).head) == bits(ADAPTER.head)
    assert not sent(row).prototypes
    for module in SPEC.modules:
        pair, global_pair = sent(row).pairs[module.name], ADAPTER.pairs[module.name]
        assert pair.rank == (counts[module.layer] or max(counts))
        assert bits({0: pair.A, 1: pair.B}) == bits({0: global_pair.A[: pair.rank], 1: global_pair.B[:, : pair.rank]})
