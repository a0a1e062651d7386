"""Sums of low-rank products against dense float64 matrices."""

from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import torch
from factories import bits
from hypothesis import given, settings

from hellora.core.low_rank import Term, ThinSVD, grown, norm, stacked, thin_svd, to_global
from hellora.core.types import LoraPair

Dense = npt.NDArray[np.float64]
laws = settings(derandomize=True, deadline=None, database=None, max_examples=60)


def pair_of(rng: np.random.Generator, d_out: int, d_in: int, rank: int, scale: float) -> LoraPair:
    A, B = (torch.tensor(rng.normal(size=shape), dtype=torch.float32) for shape in ((rank, d_in), (d_out, rank)))
    return LoraPair(A, B, scale)


def dense(pair: LoraPair) -> Dense:
    product: Dense = pair.scale * pair.B.double().numpy() @ pair.A.double().numpy()
    return product


def rebuilt(svd: ThinSVD) -> Dense:
    product: Dense = (svd.U * svd.S @ svd.Vh).numpy()
    return product


@dataclass(frozen=True)
class Sum:
    """Terms and their dense sum; the stacked rank may be above both sides, and some terms may cancel."""

    terms: list[Term]
    total: Dense


@st.composite
def sums(draw: st.DrawFn) -> Sum:
    d_out, d_in = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    terms = [
        (float(rng.normal()), pair_of(rng, d_out, d_in, rank, scale=float(rng.uniform(0.5, 3))))
        for rank in draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    ]
    total = np.sum([weight * dense(pair) for weight, pair in terms], axis=0)
    if draw(st.booleans()):
        gone = pair_of(rng, d_out, d_in, 3, 100.0)
        terms = [(1.0, gone), *terms, (-1.0, gone)]
    return Sum(terms, total)


@laws
@given(sums())
def test_the_svd_is_that_of_the_dense_sum(case: Sum) -> None:
    found = thin_svd(case.terms)
    np.testing.assert_allclose(dense(stacked(case.terms)), case.total, atol=1e-10)
    np.testing.assert_allclose(rebuilt(found), case.total, atol=1e-10)
    exact = np.linalg.svd(case.total, compute_uv=False)
    assert found.rank == np.sum(exact > 1e-10), "what cancels must not come back as directions of rounding errors"
    np.testing.assert_allclose(found.S.numpy(), exact[: found.rank], atol=1e-10)
    np.testing.assert_allclose((found.U.T @ found.U).numpy(), np.eye(found.rank), atol=1e-10)
    np.testing.assert_allclose((found.Vh @ found.Vh.T).numpy(), np.eye(found.rank), atol=1e-10)


@laws
@given(sums(), st.integers(1, 8))
def test_a_bank_is_the_best_approximation_and_has_no_dead_component(case: Sum, rank: int) -> None:
    idle = torch.ones(rank, case.total.shape[1])
    global_pair = to_global(thin_svd(case.terms), 2.0, idle)
    assert global_pair.A.shape == idle.shape
    assert global_pair.A.dtype == global_pair.B.dtype == torch.float32
    assert global_pair.scale == 2.0
    exact = np.linalg.svd(case.total, compute_uv=False)
    missed = np.linalg.norm(dense(global_pair) - case.total)
    np.testing.assert_allclose(missed, np.linalg.norm(exact[rank:]), atol=1e-5 * (1 + np.linalg.norm(exact)))
    assert (global_pair.A.norm(dim=1) > 0).all()
    filled = int(np.sum(exact > 1e-10))
    assert not global_pair.B[:, filled:].any()
    assert bits({0: global_pair.A[filled:]}) == bits({0: idle[filled:]})
    torch.testing.assert_close(
        global_pair.A[:filled].norm(dim=1), global_pair.B[:, :filled].norm(dim=0)[:rank]
    )  # balanced


@laws
@given(sums(), st.integers(1, 8))
def test_the_first_directions_alone_are_those_of_the_whole(case: Sum, rank: int) -> None:
    some, whole = thin_svd(case.terms, rank), thin_svd(case.terms).truncated(rank)
    assert (some.S.tolist(), some.rank) == (whole.S.tolist(), whole.rank)
    np.testing.assert_allclose(rebuilt(some), rebuilt(whole), atol=1e-10)


def test_two_factorisations_of_one_matrix_have_the_same_svd() -> None:
    pair = pair_of(np.random.default_rng(0), 6, 5, 3, 1.5)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()).Q
    turned = LoraPair(turn.T @ pair.A.double(), pair.B.double() @ turn, 1.5)
    one, other = thin_svd([(1.0, pair)]), thin_svd([(0.5, turned), (0.5, turned)])
    torch.testing.assert_close(one.U, other.U)
    torch.testing.assert_close(one.Vh, other.Vh)
    assert (one.U.gather(0, one.U.abs().argmax(0, keepdim=True)) > 0).all()


def test_small_is_not_nothing() -> None:
    """A direction counts as 0 against the terms in their own size, whatever the lengths of A and B are."""
    tiny = LoraPair(torch.tensor([[0.0, 1e-6]]), torch.tensor([[0.0], [1e-6]]), 1.0)
    skewed = LoraPair(torch.tensor([[1e-12, 0.0]]), torch.tensor([[1e12], [0.0]]), 1.0)
    assert thin_svd([(1.0, tiny), (1.0, skewed)]).S.numpy() == pytest.approx([1.0, 1e-12])


def test_truncation_by_rank_and_by_energy() -> None:
    svd = ThinSVD(torch.eye(3).double(), torch.tensor([3.0, 2.0, 1.0]).double(), torch.eye(3).double())
    assert svd.truncated(2).S.tolist() == [3.0, 2.0]
    assert svd.truncated(9).S.tolist() == [3.0, 2.0, 1.0]
    shares = {0.6: 1, 9 / 14: 1, 0.65: 2, 13 / 14: 2, 0.93: 3, 1.0: 3}  # of 9 + 4 + 1
    assert {energy: svd.truncated(3, energy).rank for energy in shares} == shares
    assert svd.truncated(1, 0.99).rank == 1
    faint = ThinSVD(svd.U, torch.tensor([1.0, 1e-12, 1e-13]).double(), svd.Vh)
    assert faint.truncated(3, 1.0).rank == 3, "an energy of 1 keeps what float64 cannot add up"


def test_nothing_has_rank_0() -> None:
    empty = thin_svd([(1.0, LoraPair(torch.ones(2, 3), torch.zeros(4, 2), 1.0))])
    assert (empty.rank, empty.U.shape, empty.Vh.shape) == (0, (4, 0), (0, 3))
    assert empty.truncated(2, 0.5).rank == 0
    assert grown(None, empty, 3, torch.float32) is None


@laws
@given(sums(), st.integers(0, 1000))
def test_a_residual_grows_exactly_up_to_the_smaller_side(case: Sum, seed: int) -> None:
    rng = np.random.default_rng(seed)
    d_out, d_in = case.total.shape
    old = pair_of(rng, d_out, d_in, 2, 1.0)
    side = min(d_out, d_in)
    new = grown(old, thin_svd(case.terms), max(2, side), torch.float32)
    assert new is not None
    assert new.rank <= max(2, side)
    assert (new.scale, new.A.dtype, new.B.dtype) == (1.0, torch.float32, torch.float32)
    expected = dense(old) + case.total
    np.testing.assert_allclose(dense(new), expected, atol=1e-5 * (1 + np.abs(expected).max()))


def test_a_residual_above_its_limit_keeps_the_leading_directions() -> None:
    rng = np.random.default_rng(0)
    old, more = pair_of(rng, 7, 6, 3, 1.0), pair_of(rng, 7, 6, 3, 1.0)
    added = thin_svd([(1.0, more)])
    assert grown(old, added, 6, torch.float32).rank == 6  # type: ignore[union-attr]
    cut = grown(old, added, 4, torch.float32)
    assert cut is not None
    assert cut.rank == 4
    exact = np.linalg.svd(dense(old) + dense(more), compute_uv=False)
    missed = np.linalg.norm(dense(old) + dense(more) - dense(cut))
    assert missed == pytest.approx(np.linalg.norm(exact[4:]), rel=1e-5)


@laws
@given(sums())
def test_norms(case: Sum) -> None:
    one = case.terms[0][1]
    assert norm(one) == pytest.approx(float(np.linalg.norm(dense(one))), rel=1e-9)
