"""Inputs of public bug reports, each with its right value: `cases/` beside the real data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hellora.core.errors import InputError
from hellora.data.images import ImageRows, eight_bit
from hellora.data.settings import DataSettings
from hellora.data.sources import load_corpus

pytestmark = pytest.mark.shared_data
Sizes = tuple[int, int, tuple[str, ...]]


@pytest.fixture
def cases(shared_data: Path) -> Path:
    return shared_data.parent / "cases"


def read(folder: Path, columns: Any = "text", **settings: Any) -> Any:
    return load_corpus(DataSettings(name=str(folder), proxy_examples=0, **settings), columns, 0)


@pytest.mark.parametrize(
    ("case", "columns", "right"),
    [
        ("gz-and-nested/plain", "text", (30, 6, ("01", "1", "NA"))),
        ("gz-and-nested/nested", "text", (20, 6, ("01", "1"))),
        ("gz-and-nested/gz", "text", (30, 6, ("01", "1", "NA"))),
        ("gz-and-nested/nested_text", "text", (20, 6, ("x", "y"))),
        ("gz-and-nested/upper", "text", (20, 6, ("01", "1"))),
        ("hub-snapshot/repo", "text", (20, 6, ("a", "b"))),
        ("mixed-formats/in", "text", (40, 10, ("a", "b"))),
        ("mixed-formats/in2", "text", (40, 10, ("a", "b"))),
        ("imagefolder-class-train/in", "image", (18, 18, ("bus", "car", "train"))),
        ("imagefolder-class-train/in2", "image", (12, 12, ("beaker", "test tube"))),
        ("imagefolder-class-train/in3", "image", (16, 2, ("bus", "car", "train"))),
        ("imagefolder-class-train/in4", "image", (12, 12, ("bus", "car"))),
        ("imagefolder-class-train/in5", "image", (11, 1, ("bus", "car"))),
        ("imagefolder-class-train/in6", "image", (12, 12, ("cat", "dog"))),
        ("imagefolder-class-train/in7", "image", (12, 12, ("dev board", "laptop"))),
        ("imagefolder-json/in", "image", (12, 12, ("cat", "dog"))),
        ("imagefolder-nested/in", "image", (14, 2, ("cat", "dog"))),
    ],
)
def test_splits_and_classes(cases: Path, case: str, columns: Any, right: Sizes) -> None:
    corpus = read(cases / case, columns)
    assert (len(corpus.train), len(corpus.test), corpus.labels) == right
    assert len(set(corpus.train["label"][:])) == len(right[2])


def test_texts_that_pandas_takes_for_gaps(cases: Path) -> None:
    assert {"NA", "null"} <= set(read(cases / "gz-and-nested" / "nested_text").train["text"])


@pytest.mark.parametrize("name", ["q", "q3", "q4", "q5"])
def test_quotation_marks_in_the_middle_of_a_cell(cases: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"\.csv is .*\(line \d.*: a quotation mark closes in the middle of a cell"):
        read(cases / "csv-quotes" / f"{name}.csv")


def test_a_quotation_mark_inside_a_plain_cell(cases: Path) -> None:
    corpus = read(cases / "csv-quotes" / "q2.csv")
    assert 'a 5" screen' in {*corpus.train["text"], *corpus.test["text"]}


@pytest.mark.parametrize(("name", "answers"), [("a", {"7", "2.5"}), ("d", {"1e22", "0.00001", "1.10"})])
def test_numbers_of_json(cases: Path, name: str, answers: set[str]) -> None:
    corpus = read(cases / "json-numbers" / f"{name}.jsonl", "instruction", prompt="{q}", response="{a}")
    assert set(corpus.train["response"]) == answers


def test_numbers_of_parquet(cases: Path) -> None:
    with pytest.raises(InputError, match="write numbers as texts"):
        read(cases / "json-numbers" / "e.parquet", "instruction", prompt="{q}", response="{a}")


@pytest.mark.parametrize("seed", range(8))
def test_natural_clients(cases: Path, seed: int) -> None:
    settings = DataSettings(name=str(cases / "natural-clients" / "n.jsonl"), clients=13)
    corpus = load_corpus(settings, "text", seed, natural="author")
    assert len(set(corpus.train["author"])) == 13


def test_sixteen_bits(cases: Path) -> None:
    """257, 10000 and 40000 were all white."""
    found = sorted((cases / "sixteen-bit-images" / "u16").rglob("*.png"))
    assert found
    for path in found:
        with Image.open(path) as image:
            assert image.mode == "I;16"
            values = np.asarray(image).astype(np.int64) // 256
            assert np.array_equal(np.asarray(eight_bit(image))[..., 0], values)


def test_photos_that_lie(cases: Path) -> None:
    corpus = read(cases / "exif-orientation" / "img", "image")
    stored = corpus.test.data.column("image").to_pylist()
    rows = ImageRows(corpus.test)
    for row, each in enumerate(stored):
        with Image.open(each["path"]) as image:
            assert np.array_equal(np.asarray(rows[row]["image"]), np.asarray(eight_bit(image)))
