"""Mathematics on pairs and adapters."""

from dataclasses import replace

import numpy as np
import torch
from factories import bits, random_adapter, tiny_spec

from hellora.core.algebra import (
    components,
    delta_weight,
    joined,
    new_adapter,
    prototype_of,
    prototype_row,
    prototypes_of,
    trained_part,
    weighted_mean,
    with_prototypes,
)
from hellora.core.types import LoraPair

SPEC = tiny_spec()


def test_new_adapter_starts_at_zero_with_bounded_A() -> None:
    head = {"bias": torch.ones(2)}
    adapter = new_adapter(SPEC, head, seed=5)
    assert list(adapter.pairs) == [module.name for module in SPEC.modules]
    for module in SPEC.modules:
        pair = adapter.pairs[module.name]
        assert pair.A.shape == (SPEC.max_rank, module.d_in)
        assert pair.B.shape == (module.d_out, SPEC.max_rank)
        assert pair.scale == SPEC.scale
        assert not pair.B.any()
        assert 0.5 * module.d_in**-0.5 < pair.A.abs().max() <= module.d_in**-0.5
    assert bits(adapter.head) == bits(head)


def test_new_adapter_depends_on_seed_and_name_only() -> None:
    adapter = new_adapter(SPEC, {}, seed=5)
    torch.rand(3)
    fewer = new_adapter(replace(SPEC, modules=SPEC.modules[3:]), {}, seed=5)
    for name, pair in fewer.pairs.items():
        assert bits({0: pair.A}) == bits({0: adapter.pairs[name].A})
    other = new_adapter(SPEC, {}, seed=6)
    first, second = (module.name for module in SPEC.modules[:2])
    assert not torch.equal(adapter.pairs[first].A, other.pairs[first].A)
    assert not torch.equal(adapter.pairs[first].A, adapter.pairs[second].A)


def test_delta_weight_by_hand() -> None:
    pair = LoraPair(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 1.0], [0.0, 2.0]]), 0.5)
    assert delta_weight(pair).tolist() == [[0.5, 1.0], [1.5, 3.5], [0.0, 1.0]]


def test_components_by_number_and_by_truth() -> None:
    pair = random_adapter(SPEC, 0).pairs["block.1.query"]
    by_number = components(pair, torch.tensor([1, 3]))
    by_truth = components(pair, torch.tensor([False, True, False, True]))
    assert by_number.A.tolist() == pair.A[[1, 3]].tolist() == by_truth.A.tolist()
    assert by_number.B.tolist() == pair.B[:, [1, 3]].tolist() == by_truth.B.tolist()
    assert by_number.scale == pair.scale


def test_components_add_up_to_the_whole() -> None:
    pair = random_adapter(SPEC, 0).pairs["block.0.value"]
    parts = [delta_weight(components(pair, torch.tensor([q]))) for q in range(SPEC.max_rank)]
    torch.testing.assert_close(torch.stack(parts).sum(0), delta_weight(pair))


def test_trained_part_has_the_row_and_nothing_else() -> None:
    adapter = random_adapter(SPEC, 0)
    row = np.array([[True, False, False, True], [False] * 4, [True] * 4])
    part = trained_part(adapter, row, SPEC)
    assert set(part.pairs) == {"block.0.query", "block.0.value", "block.2.query", "block.2.value"}
    assert part.head == {}
    assert part.pairs["block.0.query"].A.tolist() == adapter.pairs["block.0.query"].A[[0, 3]].tolist()
    assert part.pairs["block.0.value"].B.tolist() == adapter.pairs["block.0.value"].B[:, [0, 3]].tolist()
    assert bits({0: part.pairs["block.2.value"].A}) == bits({0: adapter.pairs["block.2.value"].A})


def test_weighted_mean_by_hand() -> None:
    mean = weighted_mean([torch.tensor([1.0, 8.0]), torch.tensor([5.0, 0.0])], [1.0, 3.0])
    assert mean.tolist() == [4.0, 2.0]
    assert mean.dtype == torch.float32


def test_weighted_mean_sums_in_float64() -> None:
    values = [1e8, 1.0, -1e8]  # in float32 the 1 would be lost
    assert weighted_mean([torch.tensor([v]) for v in values], [1.0] * 3).item() == torch.tensor(1 / 3).item()


def test_a_joined_pair_does_what_both_do() -> None:
    one = replace(random_adapter(SPEC, 0).pairs["block.1.query"], scale=0.5)
    other = replace(components(random_adapter(SPEC, 1).pairs["block.1.query"], torch.tensor([0, 2])), scale=3.0)
    both = joined(one, other)
    assert (both.rank, both.scale) == (SPEC.max_rank + 2, 0.5)
    torch.testing.assert_close(delta_weight(both), delta_weight(one) + delta_weight(other))


def test_a_row_over_a_prototypes_own_components() -> None:
    """The client's rank is 2, the most that it trains in a layer."""
    row = np.array([[True, False, False, True], [False, True, False, False], [False] * 4])
    assert prototype_row(row).tolist() == [[True, True], [True, False], [False, False]]
    row[2] = True
    assert prototype_row(row) is row, (
        "a client of full rank trains components of the global adapter, as they are allocated"
    )


def test_prototypes_by_rank() -> None:
    global_pair = random_adapter(SPEC, 0)
    of_two = prototype_of(random_adapter(SPEC, 1), 2, SPEC)
    adapter = replace(global_pair, prototypes={2: of_two})
    assert prototype_of(adapter, 2, SPEC) is of_two
    found = prototypes_of(adapter, SPEC)
    assert list(found) == [2, SPEC.max_rank]
    assert bits(found[SPEC.max_rank].tensors()) == bits(global_pair.tensors())
    assert bits(with_prototypes(found).tensors()) == bits(adapter.tensors())
    of_three = prototype_of(adapter, 3, SPEC)
    assert not of_three.prototypes
    for name, pair in of_three.pairs.items():
        assert bits({0: pair.A, 1: pair.B}) == bits(
            {0: global_pair.pairs[name].A[:3], 1: global_pair.pairs[name].B[:, :3]}
        )
