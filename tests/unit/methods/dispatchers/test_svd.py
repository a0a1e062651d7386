"""The best adapter of a client's rank, and what a global adapter of lower rank sends."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import bits, dispatched, effective, random_adapter, tiny_spec

from hellora.core.algebra import new_adapter
from hellora.core.types import Adapter, LoraPair
from hellora.methods.dispatchers.svd import Svd
from hellora.methods.dispatchers.truncate import Truncate

SPEC = tiny_spec()
GLOBAL = random_adapter(SPEC, seed=1)


def row_of(*ranks: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.arange(SPEC.max_rank) < np.array(ranks)[:, None]


def test_the_best_approximation_of_each_rank() -> None:
    sent = dispatched(Svd(), GLOBAL, row_of(1, 0, 3), SPEC)
    whole, got = effective(GLOBAL), effective(sent)
    for module in SPEC.modules:
        rank = (1, 0, 3)[module.layer]
        pair = sent.pairs[module.name]
        if rank == 0:
            assert bits({0: pair.A, 1: pair.B}) == bits(
                {0: GLOBAL.pairs[module.name].A, 1: GLOBAL.pairs[module.name].B}
            )
            continue
        assert pair.rank == rank
        exact = np.linalg.svd(whole[module.name], compute_uv=False)
        missed = np.linalg.norm(got[module.name] - whole[module.name])
        assert missed == pytest.approx(np.linalg.norm(exact[rank:]), abs=1e-5)


def test_which_components_a_row_names_is_of_no_account() -> None:
    scattered = np.array([[False, True, False, True]] * 3)
    one, other = (dispatched(Svd(), GLOBAL, row, SPEC) for row in (scattered, row_of(2, 2, 2)))
    assert bits(one.tensors()) == bits(other.tensors())


def test_a_bank_that_an_svd_made_is_truncated() -> None:
    names = [m.name for m in SPEC.modules if m.d_out > SPEC.max_rank]
    ordered = dispatched(Svd(), GLOBAL, row_of(3, 3, 3), SPEC)
    spec = replace(SPEC, max_rank=3)
    row = np.arange(3) < np.array([[2], [1], [2]])
    for name in names:
        by_svd, cut = (dispatched(d, ordered, row, spec).pairs[name] for d in (Svd(), Truncate()))
        torch.testing.assert_close(by_svd.A, cut.A)
        torch.testing.assert_close(by_svd.B, cut.B)


def test_a_new_bank_sends_its_first_rows() -> None:
    """B = 0 has no direction to send, and A = 0 with it would never learn."""
    fresh = new_adapter(SPEC, {}, seed=3)
    sent = dispatched(Svd(), fresh, row_of(2, 2, 2), SPEC)
    assert bits(sent.tensors()) == bits(dispatched(Truncate(), fresh, row_of(2, 2, 2), SPEC).tensors())


def test_a_bank_of_low_rank_sends_its_idle_rows() -> None:
    """Only component 2 of 4 does anything: it comes first, then rows whose B is 0, and never one of zeros."""
    pairs = {}
    for name, pair in GLOBAL.pairs.items():
        B = torch.zeros_like(pair.B)
        B[:, 2] = pair.B[:, 2]
        pairs[name] = LoraPair(pair.A, B, pair.scale)
    global_pair = Adapter(pairs)
    sent = dispatched(Svd(), global_pair, row_of(3, 3, 3), SPEC)
    for name, pair in sent.pairs.items():
        np.testing.assert_allclose(effective(sent)[name], effective(global_pair)[name], atol=1e-5)
        assert pair.A[1:].tolist() == global_pair.pairs[name].A[[0, 1]].tolist()
        assert not pair.B[:, 1:].any()
