"""Columns of numbers: what is one, what is not and is named, and where nothing has any."""

import math
from pathlib import Path
from typing import Any

import pytest

from hellora.core.errors import InputError
from hellora.data.numbers import as_number
from hellora.data.one_file import read_rows
from hellora.data.settings import DataSettings
from hellora.data.sources import Corpus, load_corpus


def corpus(folder: Path, train: str, test: str | None = None, **settings: Any) -> Corpus:
    (folder / "train.csv").write_text(train)
    if test is not None:
        (folder / "test.csv").write_text(test)
    return load_corpus(DataSettings(**{"name": str(folder), "proxy_examples": 0, **settings}), "text_numbers", seed=0)


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        *[("3.5", 3.5), (" 4 ", 4.0), ("1e-3", 0.001), ("-.5", -0.5), ("+2.", 2.0), (7, 7.0), (2.25, 2.25)],
        *[
            (cell, None)
            for cell in (
                "",
                " ",
                "nan",
                "inf",
                "-Infinity",
                "1e999",
                "1e31",
                "−2",
                "1 000",
                "50%",
                "n/a",
                "3,5",
                "1_000",
                "0x1",
                "5 mg",
            )
        ],
        *[(math.nan, None), (math.inf, None), (None, None)],
    ],
)
def test_a_number_is_as_a_person_writes_it(cell: Any, number: float | None) -> None:
    assert as_number(cell) == number


def test_rows_without_a_number_are_named(tmp_path: Path) -> None:
    rows = [f"text {i},{i / 2}" for i in range(38)]
    table = "\n".join(["text,label", *rows, 'other,"3,5"', "more,"]) + "\n"
    found = corpus(tmp_path, table, "text,label\na,1\nb,2e0\n", unusable=0.1)
    assert found.labels == ("value",)
    assert found.train["targets"][:][:3] == [[0.0], [0.5], [1.0]]
    assert found.test["targets"][:] == [[1.0], [2.0]]
    (note,) = [note for note in found.notes if note.startswith("left out")]
    assert "its 'label' is '3,5', no number up to 1e+30 (they are written as 3.5 or 1e-3), " in note
    assert "train.csv, line 40" in note
    assert "its 'label' is empty" in note
    with pytest.raises(InputError, match=r"2 of the 40 rows of .* cannot be used, more than 4%"):
        corpus(tmp_path, table, unusable=0.04)


def test_several_numbers_have_their_columns_names(tmp_path: Path) -> None:
    table = "text,valence,arousal\n" + "".join(f"text {i},{i},{-i}\n" for i in range(40)) + "last,1,\n"
    found = corpus(tmp_path, table, labels=("valence", "arousal"))
    assert found.labels == ("valence", "arousal")
    assert found.train.column_names == ["text", "targets"]
    assert all(valence == -arousal for valence, arousal in found.train["targets"][:])
    with pytest.raises(InputError, match=r"data\.labels: .*train\.csv has no column 'mood'"):
        corpus(tmp_path, table, labels=("valence", "mood"))


def test_a_test_split_without_numbers_tests_nothing(tmp_path: Path) -> None:
    """As that of STS-B, in which all are -1."""
    (tmp_path / "validation.csv").write_text("text,label\nc,3\n")
    found = corpus(tmp_path, "text,label\na,1\nb,2\n", "text,label\nd,-1\ne,-1\n")
    assert found.test["text"][:] == ["c"]
    assert any("it has no labels" in note for note in found.notes)
    with pytest.raises(InputError, match=r"is unlabelled, for its column 'label' is -1 or empty in every row"):
        corpus(tmp_path, "text,label\na,-1\nb,-1\n")


def test_what_is_predicted_needs_no_number(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("text\na\n")
    rows = read_rows(str(tmp_path / "new.csv"), DataSettings(), "text_numbers", ("value",), labelled=False)
    assert math.isnan(rows.data["targets"][0][0])
