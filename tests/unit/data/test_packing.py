"""Texts packed into rows: by hand, and by what holds of any lengths."""

import numpy as np
import pytest

from hellora.data.packing import PackedRows, packed


def test_best_fit_by_hand() -> None:
    """7 and 6 begin rows of 10; 4 fits beside 6 only; 3 beside 7 exactly; 2 begins the third."""
    rows = packed([3, 7, 2, 6, 4], 10, seed=0)
    assert [row.tolist() for row in rows] == [[1, 0], [3, 4], [2]]


@pytest.mark.parametrize("seed", range(3))
def test_every_text_once_and_no_row_too_long(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 65, 300)
    rows = packed(lengths, 64, seed)
    assert sorted(np.concatenate(rows).tolist()) == list(range(300))
    filled = [int(lengths[row].sum()) for row in rows]
    assert max(filled) <= 64
    assert len(rows) <= 1.05 * lengths.sum() / 64 + 1, "next to nothing is padding"


def test_the_seed_decides_neighbours_and_not_the_number_of_rows() -> None:
    lengths = np.random.default_rng(0).integers(1, 33, 200)
    dealt = [[row.tolist() for row in packed(lengths, 64, seed)] for seed in (0, 0, 1, 2)]
    assert dealt[0] == dealt[1]
    assert dealt[0] != dealt[2]
    assert len({len(rows) for rows in dealt}) == 1


def test_rows_are_put_together_in_order() -> None:
    examples = [{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [3], "labels": [3]}]
    rows = PackedRows(examples, [np.array([1, 0]), np.array([0])])
    assert len(rows) == 2
    assert rows[0] == {"input_ids": [3, 1, 2], "labels": [3, -100, 2], "lengths": [1, 2]}
    assert rows[1] == {"input_ids": [1, 2], "labels": [-100, 2], "lengths": [2]}
