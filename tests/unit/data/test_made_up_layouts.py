"""Layouts that people have, made up to break the loader: what is read of each, or how it is refused."""

import gzip
import json
import lzma
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image

from hellora.core.errors import InputError
from hellora.data.settings import DataSettings
from hellora.data.sources import load_corpus

Files = dict[str, str | bytes | Callable[[Path], Any]]


def table(count: int, start: str = "t", labels: str = "ab") -> str:
    """A CSV file of so many rows."""
    return "text,label\n" + "".join(f"{start}{row},{labels[row % len(labels)]}\n" for row in range(count))


def lines(count: int, start: str = "t") -> str:
    return "".join(json.dumps({"text": f"{start}{row}", "label": "ab"[row % 2]}) + "\n" for row in range(count))


def image(path: Path) -> None:
    """A picture of its own for each place."""
    Image.new("RGB", (2, 2), hash(str(path)) % 2**24).save(path)


def pictures(*folders: str, count: int = 4) -> Files:
    return {f"{folder}/{number}.png": image for folder in folders for number in range(count)}


def saved(**splits: int) -> Callable[[Path], Any]:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    made = {
        name: Dataset.from_dict(
            {"text": [f"{name}{i}" for i in range(n)], "label": [i % 2 for i in range(n)]}, features
        )
        for name, n in splits.items()
    }
    return lambda path: DatasetDict(made).save_to_disk(str(path))


def parquet(count: int, start: str = "t") -> Callable[[Path], Any]:
    rows = {"text": [f"{start}{i}" for i in range(count)], "label": ["ab"[i % 2] for i in range(count)]}
    return lambda path: Dataset.from_dict(rows).to_parquet(path)


def write(root: Path, files: Files) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())


READ: dict[str, tuple[Files, dict[str, Any], tuple[int, int]]] = {
    "kaggle": ({"train.csv": table(20), "test.csv": table(6, "u"), "sample_submission.csv": "id\n1\n"}, {}, (20, 6)),
    "one file": ({"my.csv": table(20)}, {}, (18, 2)),
    "BOM and CRLF": ({"train.csv": "\ufeff" + table(20).replace("\n", "\r\n"), "test.csv": table(5, "u")}, {}, (20, 5)),
    "CR alone": ({"train.csv": table(20).replace("\n", "\r"), "test.csv": table(5, "u")}, {}, (20, 5)),
    "capitals": ({"TRAIN.CSV": table(20), "Test.Csv": table(5, "u")}, {}, (20, 5)),
    "compressed": (
        {
            "train-1.csv.xz": lzma.compress(table(9).encode()),
            "train-2.jsonl.gz": gzip.compress(lines(9, "v").encode()),
            "test.csv.GZ": gzip.compress(table(5, "u").encode()),
        },
        {},
        (18, 5),
    ),
    "a compressed copy": ({"train.csv": table(20), "train.csv.gz": gzip.compress(table(20).encode())}, {}, (18, 2)),
    "hub shards": (
        {
            f"data/{split}-0000{i}-of-00002-a09b74b3ef9c3b56.parquet": parquet(n, f"{split}{i}")
            for split, n in (("train", 10), ("test", 3))
            for i in (0, 1)
        },
        {},
        (20, 6),
    ),
    "what tools leave": (
        {
            "train.csv": table(20),
            "test.csv": table(5, "u"),
            ".train.csv": table(5, "x"),
            "._test.csv": "\xff",
            ".ipynb_checkpoints/train.csv": table(5, "x"),
            "__MACOSX/train.csv": table(5, "x"),
        },
        {},
        (20, 5),
    ),
    "parts in folders": (
        {"train/a/part.csv": table(9, "v"), "train/b/part.csv": table(9, "w"), "test/part.csv": table(5, "u")},
        {},
        (18, 5),
    ),
    "one folder around all": ({"mine/train.csv": table(20), "mine/test.csv": table(5, "u")}, {}, (20, 5)),
    "a folder for each split": (
        {"train_data/train.csv": table(20), "test_data/test.csv": table(5, "u")},
        {},
        (20, 5),
    ),
    "unzipped from kaggle": ({"train.csv/train.csv": table(20), "test.csv/test.csv": table(5, "u")}, {}, (20, 5)),
    "glob marks in a folder": (
        {"v[12]/train.parquet": parquet(20), "v1/x.parquet": parquet(3)},
        {"in": "v[12]"},
        (18, 2),
    ),
    "semicolons": ({"train.csv": "\ufeff" + table(20).replace(",", ";")}, {}, (18, 2)),
    "tabs in a file named .csv": ({"train.csv": table(20).replace(",", "\t")}, {}, (18, 2)),
    "one client of twelve": (
        {f"site_{n}.csv": table(10, f"s{n}") for n in range(1, 13)} | {"test.csv": table(5, "u")},
        {"train_split": "site_1"},
        (10, 5),
    ),
    "a subset": (
        {f"{of}/{split}.csv": table(n, of) for of in ("en", "de") for split, n in (("train", 20), ("test", 5))},
        {"subset": "de"},
        (20, 5),
    ),
    "JSON under a name": (
        {"train.json": json.dumps({"data": [json.loads(x) for x in lines(20).splitlines()]})},
        {},
        (18, 2),
    ),
    "JSON lines as .json": ({"train.json": lines(20), "test.json": lines(5, "u")}, {}, (20, 5)),
    "JSON of columns": (
        {"train.json": json.dumps({"text": list("abcdefghij"), "label": list("ababababab")})},
        {},
        (9, 1),
    ),
    "a list in .jsonl": (
        {"train.jsonl": json.dumps([{"text": str(i), "label": i % 2} for i in range(20)])},
        {},
        (18, 2),
    ),
    "saved by datasets": ({"x": saved(train=20, test=5)}, {"in": "x"}, (20, 5)),
    "saved with valid": ({"x": saved(train=20, valid=5)}, {"in": "x"}, (20, 5)),
    "a test file without labels": (
        {"train.csv": table(20), "test.csv": "text\nfoo\n", "validation.csv": table(5, "u")},
        {},
        (20, 5),
    ),
    "images": (pictures("train/cat", "train/dog", "test/cat", "test/dog"), {"columns": "image"}, (8, 8)),
    "images, a flat test": (
        pictures("train/cat", "train/dog", "test") | {"sample.csv": "id\n1\n"},
        {"columns": "image"},
        (7, 1),
    ),
    "images, unlabelled public data": (
        pictures("train/cat", "train/dog", "test/cat", "unlab"),
        {"columns": "image", "public": "unlab"},
        (8, 4),
    ),
    "images around which a folder lies": (pictures("PetImages/Cat", "PetImages/Dog"), {"columns": "image"}, (7, 1)),
    "images in numbered classes": (
        pictures("train/0", "train/2", "train/10", "test/10"),
        {"columns": "image"},
        (12, 4),
    ),
    "images, one of two versions": (
        pictures("v1/cat", "v1/dog", "v2/cat", "v2/dog"),
        {"columns": "image", "subset": "v2"},
        (7, 1),
    ),
    "images by a table above": (
        pictures("train", "test", count=2)
        | {"metadata.csv": "file_name,label\ntrain/0.png,a\ntrain/1.png,b\ntest/0.png,a\n./test/1.png,b\n"},
        {"columns": "image"},
        (2, 2),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_a_layout_is_read(tmp_path: Path, name: str) -> None:
    files, chosen, sizes = READ[name]
    write(tmp_path, files)
    settings = dict(chosen)
    columns, inside = settings.pop("columns", "text"), settings.pop("in", ".")
    folder = str(tmp_path if inside == "." else tmp_path / inside)
    corpus = load_corpus(DataSettings(name=folder, proxy_examples=0, **settings), columns, 0)
    assert (len(corpus.train), len(corpus.test)) == sizes
    assert len(corpus.labels) >= 2
    assert any(note.startswith("read ") for note in corpus.notes)


def test_numbered_classes_are_in_order_of_size(tmp_path: Path) -> None:
    write(tmp_path, READ["images in numbered classes"][0])
    assert load_corpus(DataSettings(name=str(tmp_path)), "image", 0).labels == ("0", "2", "10")


REFUSED: dict[str, tuple[Files, dict[str, Any], str]] = {
    "UTF-16": ({"train.csv": table(9).encode("utf-16")}, {}, "is not UTF-8: save the file as UTF-8"),
    "no gzip": ({"train.csv.gz": table(9)}, {}, r"train\.csv\.gz is empty, damaged, or not .*Not a gzipped file"),
    "names that end like splits": (
        {"latest.csv": table(9), "contest.csv": table(9)},
        {},
        "no file or folder .* is named",
    ),
    "two folders of splits": (
        {"v1/train.csv": table(9), "v2/train.csv": table(9), "test.csv": table(5)},
        {},
        "splits in several folders",
    ),
    "a row too long": (
        {"train.csv": table(20) + "a,b,c\n"},
        {},
        r"line 22: Expected 2 columns, got 3 \(put cells with sep",
    ),
    "a label of the test alone": (
        {"train.csv": table(9), "test.csv": "text,label\nx,NA\n"},
        {},
        "line 2 has the label 'NA'",
    ),
    "a test file alone": ({"test.csv": table(9)}, {}, r"is named 'train' \(it has test\.csv\)"),
    "a training file to convert": ({"train.xlsx": "x", "other.csv": table(9)}, {}, "format that is unknown"),
    "a test file to convert": (
        {"train.csv": table(9), "test.xlsx": b"PK"},
        {},
        r"test\.xlsx has a format that is unknown",
    ),
    "a shard too few": (
        {f"train-0000{i}-of-00003.csv": table(9) for i in (0, 1)},
        {},
        "of the 3 files of 'train' .* has 2: bring",
    ),
    "truncated JSON": ({"train.jsonl": lines(3) + '{"text": '}, {}, "line 4: Expecting value"),
    "saved without training": ({"x": saved(test=5)}, {"in": "x"}, r"has no split 'train' \(it has test\)"),
    "a README of another folder": (
        {"README.md": "---\nconfigs:\n- config_name: a\n  data_files: ../x.csv\n---\n", "train.csv": table(9)},
        {},
        r"declares \.\./x\.csv, which is not below it",
    ),
    "a README of a folder": (
        {"README.md": "---\nconfigs:\n- config_name: a\n  data_dir: sub\n---\n", "sub/train.csv": table(9)},
        {},
        "README.md .* declares a folder for 'a': set data.name to",
    ),
    "a README that is no such": (
        {"README.md": "---\nconfigs: foo\n---\n", "train.csv": table(9)},
        {},
        "the heading of README.md cannot be read",
    ),
    "splits inside classes": (
        pictures("cat/train", "cat/test", "dog/train", "dog/test"),
        {"columns": "image"},
        "holds the folder 'test', and it",
    ),
    "splits by another name": (
        pictures("seg_train/seg_train/cat", "seg_test/seg_test/cat"),
        {"columns": "image"},
        "look like splits, and would be",
    ),
    "images of 32 bits": (
        {
            f"{name}/{i}.tif": lambda path: Image.new("I", (2, 2), 200).save(path)
            for name in ("cat", "dog")
            for i in range(9)
        },
        {"columns": "image"},
        "its mode I has 32 bits, whose range nobody knows",
    ),
    "a table with one image twice": (
        pictures("train", count=2) | {"train/metadata.csv": "file_name,label\n0.png,a\n./0.png,b\n"},
        {"columns": "image"},
        r"metadata\.csv names 0\.png twice",
    ),
    "a table with an image that is gone": (
        pictures("train", count=2) | {"train/metadata.csv": "file_name,label\n0.png,a\n1.png,b\n2.png,a\n"},
        {"columns": "image"},
        r"metadata\.csv names 2\.png, and there is no such file",
    ),
    "one row for each natural client": (
        {"train.csv": "text,label,who\n" + "".join(f"t{i},{'ab'[i % 2]},w{i}\n" for i in range(9))},
        {"natural": "who"},
        "too few examples to hold out a test split, for each value of 'who' keeps one",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_layout_is_refused(tmp_path: Path, name: str) -> None:
    files, chosen, message = REFUSED[name]
    write(tmp_path, files)
    settings = dict(chosen)
    columns, inside, natural = settings.pop("columns", "text"), settings.pop("in", "."), settings.pop("natural", None)
    folder = str(tmp_path if inside == "." else tmp_path / inside)
    with pytest.raises(InputError) as info:
        load_corpus(DataSettings(name=folder, proxy_examples=0, **settings), columns, 0, natural)
    assert re.search(message, str(info.value)), info.value
    assert "\n" not in str(info.value)


def test_a_parquet_file_that_was_changed_is_read_anew(tmp_path: Path) -> None:
    """Also where its time of change is the old one, as tar and Docker write it."""
    file = tmp_path / "train.parquet"
    for start in ("old", "new"):
        parquet(20, start)(file)
        os.utime(file, (1, 1))
        corpus = load_corpus(DataSettings(name=str(tmp_path), proxy_examples=0), "text", 0)
        assert {text[:3] for text in corpus.train["text"]} == {start}


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write(tmp_path, {"pool/x.csv": table(20), "in/keep.txt": ""})
    (tmp_path / "in" / "train").symlink_to("../pool")
    (tmp_path / "in" / "test").symlink_to("../pool")
    (tmp_path / "pool" / "again").symlink_to("../pool")
    corpus = load_corpus(DataSettings(name=str(tmp_path / "in"), proxy_examples=0), "text", 0)
    assert (len(corpus.train), len(corpus.test)) == (20, 20)
    assert "20 of the 20 test examples are among the training examples, too" in corpus.notes


def test_an_empty_line_of_one_column_is_an_empty_cell(tmp_path: Path) -> None:
    write(tmp_path, {"train.csv": "label\n" + "a\nb\n" * 20 + "\na\n"})
    corpus = load_corpus(DataSettings(name=str(tmp_path), text="label", proxy_examples=0), "instruction", 0)
    assert any("its text is empty" in note and "line 42" in note for note in corpus.notes)
