"""Laws of data, over made-up layouts: every row is in exactly one split, with its class and values as written, and what
is not used is named."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hellora.data.loading import Source, load_splits
from hellora.data.settings import DataSettings
from hellora.data.sources import load_corpus

WANTED = ("test", "validation", "dev", "proxy")
WORDS = {"train": ("train", "training"), "test": ("test",), "validation": ("val", "valid", "validation", "dev", "eval")}
TRICKY = ("007", "1.10", "1e5", "NA", "null", "None", "true", "2024-01-02", "train", "-0", " test ", "é", "日本")
CASES = (str.lower, str.upper, str.title)
SIDE = ("notes.txt", "latest_run.csv", "contest.json", "classes.json", "README.md", "train_notes.md", ".hidden.csv")


def write_table(path: Path, rows: list[dict[str, str]], compression: str) -> None:
    """A file of rows, in the format of its suffix, in any case."""
    suffix = path.suffix.lower()
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
        return
    if suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
        data = text.getvalue().encode()
    elif suffix == ".jsonl":
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    else:
        data = json.dumps(rows).encode()
    packed = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}[compression]
    path.with_name(path.name + compression).write_bytes(packed(data))


def zstd(data: bytes) -> bytes:
    return bytes(pyarrow.Codec("zstd").compress(data, asbytes=True))


@st.composite
def split_files(draw: st.DrawFn, split: str) -> dict[str, tuple[str, int]]:
    """Names of one split's files with their compression and number of rows."""
    word = draw(st.sampled_from(CASES))(draw(st.sampled_from(WORDS[split])))
    suffix = draw(st.sampled_from((".csv", ".jsonl", ".json", ".parquet", ".CSV", ".Jsonl")))
    compression = "" if suffix == ".parquet" else draw(st.sampled_from(("", "", ".gz", ".bz2", ".xz", ".zst")))
    count = draw(st.integers(1, 3))
    how = draw(st.sampled_from(("one", "shards", "numbers", "folder", "deep")))
    names = {
        "one": [f"{word}{suffix}"],
        "shards": [f"{word}-{i:05d}-of-{count:05d}{suffix}" for i in range(count)],
        "numbers": [f"{word}_{i}{suffix}" for i in range(count)],
        "folder": [f"{word}/part-{i}{suffix}" for i in range(count)],
        "deep": [f"{word}/2024/test-{i}/latest{suffix}" for i in range(count)],
    }[how]
    return {name: (compression, draw(st.integers(1, 4))) for name in names}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_row_is_in_the_split_that_its_file_is_named_like(data: st.DataObject) -> None:
    splits = ["train", *data.draw(st.lists(st.sampled_from(("test", "validation")), unique=True))]
    wrapper = data.draw(st.sampled_from(("", "data", "corpus/v1")))
    sides = data.draw(st.lists(st.sampled_from(SIDE), unique=True))
    written: dict[str, Counter[tuple[str, str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root, number = Path(folder) / "test.data", 0
        for split in splits:
            written[split] = Counter()
            for name, (compression, count) in data.draw(split_files(split)).items():
                rows = []
                for _ in range(count):
                    number += 1
                    text = f"{number} {data.draw(st.sampled_from(TRICKY))}{data.draw(st.text(max_size=3))}"
                    rows.append({"text": text.encode(errors="ignore").decode(), "label": str(number % 2)})
                written[split].update((row["text"], row["label"]) for row in rows)
                write_table(root / wrapper / name, rows, compression)
        for side in sides:
            (root / side).write_text("{}")
        source = load_splits(str(root), "", "train", WANTED)
        found = {
            split.replace("dev", "validation"): Counter(zip(read.data["text"][:], read.data["label"][:], strict=True))
            for split, read in source.splits.items()
        }
    assert found == written
    assert all(any(side in note and "not used" in note for note in source.notes) for side in sides)
    check_places(source)


def check_places(source: Source) -> None:
    """Every row can be named, no two alike."""
    for split in source.splits.values():
        places = [split.place(row) for row in range(len(split.data))]
        assert len(set(places)) == len(places)


CLASSES = ("cat", "train", "test tube", "dev board", "val", "Validation", "eval_1", "dog")


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_image_has_the_class_of_the_first_folder_below_its_split(data: st.DataObject) -> None:
    splits = data.draw(st.sampled_from((("train", "test"), ("train",), ("train", "val"), ())))
    classes = data.draw(st.lists(st.sampled_from(CLASSES), unique=True, min_size=2, max_size=4))
    nested = data.draw(st.booleans())
    if not splits and {name.lower() for name in classes} <= {"train", "val", "validation"}:
        classes.append("cat")  # alone these are splits
    if not splits and nested and {name.lower() for name in classes} & {"train", "val", "validation"}:
        nested = False  # a class named train with folders of its own, beside others, is refused: see below
    below = ("young", "test", "train/old") if splits else ("young", "old test")  # a class that holds splits is refused
    wrapper = data.draw(st.sampled_from(("", "data")))
    written: dict[str, Counter[tuple[str, str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "in"
        for split in splits or ("",):
            rows = written.setdefault({"val": "validation", "": "train"}.get(split, split), Counter())
            for name in classes:
                for number in range(data.draw(st.integers(1, 3))):
                    inside = data.draw(st.sampled_from(below)) if nested else ""
                    word = data.draw(st.sampled_from(("test_0", "train", "a", "val-1")))
                    path = root / wrapper / split / name / inside / f"{word}{number}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.new("L", (1, 1), number).save(path)
                    rows[(str(path), name)] += 1
        for side in ("classes.json", "labels.csv", "train.txt"):
            (root / side).write_text("{}")
        source = load_splits(str(root), "", "train", WANTED, "image")
        found = {split: Counter(named_images(read.data)) for split, read in source.splits.items()}
    assert {split: +rows for split, rows in found.items()} == {
        split: Counter(dict.fromkeys(rows, 1)) for split, rows in written.items()
    }
    said = " ".join(source.notes)
    assert all(side in said for side in ("classes.json", "labels.csv", "train.txt"))


def named_images(data: Dataset) -> list[tuple[str, str]]:
    """The file and the class of every image."""
    names = data.features["label"].names
    stored = data.data.column("image").to_pylist()
    return [(image["path"], names[label]) for image, label in zip(stored, data["label"][:], strict=True)]


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=12), seeds=st.tuples(st.integers(0, 9), st.integers(0, 9))
)
def test_natural_clients_do_not_depend_on_the_seed(sizes: list[int], seeds: tuple[int, int]) -> None:
    rows = [{"text": f"{who}.{i}", "label": i % 2, "who": f"w{who}"} for who, n in enumerate(sizes) for i in range(n)]
    rows += [{"text": f"more {i}", "label": i % 2, "who": "w0"} for i in range(4)]  # something can be held out
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "all.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        chosen: dict[str, Any] = {"name": str(file), "proxy_examples": 0, "validation": 0.2}
        for seed in seeds:
            corpus = load_corpus(DataSettings(**chosen), "text", seed, "who")
            assert set(corpus.train["who"]) == {row["who"] for row in rows}
            most = load_corpus(DataSettings(**chosen, clients=2), "text", seed, "who")
            counts = Counter(row["who"] for row in rows)
            kept = sorted(counts, key=lambda who: (-counts[who], who))[:2]
            assert min(counts[who] for who in set(most.train["who"])) >= counts[kept[1]]
