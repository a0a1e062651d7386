"""Sums on a grid: exact whatever the order and the parts, against Python's own integers."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hellora.core.sums import (
    MOST_BITS,
    Grid,
    OffGridError,
    class_sums,
    exponents,
    product_sums,
    scales_of,
    symmetric,
    upper,
)


def numbers(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 1300), columns=st.integers(1, 5), bits=st.integers(3, MOST_BITS), seed=st.integers(0, 2**30))
def test_products_are_those_of_integers(rows: int, columns: int, bits: int, seed: int) -> None:
    integers = Grid(bits, torch.ones(columns)).integers(numbers(rows, columns, seed))
    as_python = integers.tolist()
    wanted = [[sum(row[i] * row[j] for row in as_python) for j in range(columns)] for i in range(columns)]
    assert product_sums(integers, bits).tolist() == wanted


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 600), max_size=5), seed=st.integers(0, 2**30))
def test_any_parts_in_any_order_have_the_same_sum(cuts: list[int], seed: int) -> None:
    grid = Grid(MOST_BITS, torch.ones(3))
    x, labels = numbers(600, 3, seed), torch.arange(600) % 4
    order = torch.randperm(600, generator=torch.Generator().manual_seed(seed + 1))
    edges = [0, *sorted(cuts), 600]
    parts = [order[a:b] for a, b in pairwise(edges)]
    whole = grid.integers(x)
    assert torch.equal(
        torch.stack([product_sums(grid.integers(x[p]), MOST_BITS) for p in parts]).sum(0),
        product_sums(whole, MOST_BITS),
    )
    assert torch.equal(
        torch.stack([class_sums(grid.integers(x[p]), labels[p], 4) for p in parts]).sum(0), class_sums(whole, labels, 4)
    )


def test_class_sums_are_columns_of_classes() -> None:
    found = class_sums(torch.tensor([[1, 10], [2, 20], [4, 40]]), torch.tensor([0, 2, 0]), 3)
    assert found.tolist() == [[5, 0, 2], [50, 0, 20]]


def test_a_grid_is_as_fine_as_its_rows_allow() -> None:
    """An int64 holds the products of all rows, at their largest."""
    for rows, bits in [(1, 24), (2**14, 24), (2**14 + 1, 23), (2**18, 22), (2**18 + 1, 21), (2**22, 20), (2**30, 16)]:
        assert Grid.for_rows(rows, torch.ones(1)).bits == bits
        assert rows * 2 ** (2 * bits) <= 2**62


def test_numbers_are_rounded_half_to_even_and_come_back() -> None:
    grid = Grid(2, torch.tensor([1.0, 8.0]))
    found = grid.integers(torch.tensor([[0.125, 1.0], [0.375, -8.0], [-1.0, 3.0]]))
    assert found.tolist() == [[0, 0], [2, -4], [-4, 2]]
    assert grid.numbers(found.sum(0)).tolist() == [-0.5, -4.0]
    assert grid.products(product_sums(found, 2)).tolist() == [
        [1.25, -2 * 4 / 16 * 8 - 8 / 16 * 8],
        [-8.0, 20 / 16 * 64],
    ]


@pytest.mark.parametrize("bad", [1.0000001, -2.0, math.nan, math.inf])
def test_what_is_off_the_grid_is_refused(bad: float) -> None:
    with pytest.raises(OffGridError, match="larger than the run's public scale"):
        Grid(20, torch.ones(1)).integers(torch.tensor([[bad]], dtype=torch.float64))


def test_scales_are_the_next_power_of_two_of_each_column() -> None:
    x = torch.tensor([[0.0, 0.5, 0.51, 3.0], [0.0, -0.1, 0.2, -4.0], [1e-9, 0.0, 0.0, 1.0]])
    scales = scales_of(exponents(x))
    assert scales.tolist() == [2.0**-15, 0.5, 1.0, 4.0]
    parts = exponents(x[:1]) + exponents(x[1:])
    assert torch.equal(parts, exponents(x))
    Grid(20, scales).integers(x)


def test_features_beyond_all_scales_are_refused() -> None:
    with pytest.raises(OffGridError, match=r"larger than 2\^16"):
        exponents(torch.tensor([[2.0**16 + 1]]))


def test_a_triangle_becomes_its_matrix_again() -> None:
    square = torch.tensor([[1, 2, 3], [2, 4, 5], [3, 5, 6]])
    assert upper(square).tolist() == [1, 2, 3, 4, 5, 6]
    assert torch.equal(symmetric(upper(square), 3), square)
