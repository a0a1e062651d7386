"""Which split and class a file is of, decided by its name alone; and what is said of files that are not used."""

from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image

from hellora.core.errors import InputError
from hellora.data.file_names import folder_split, format_of, split_of, split_of_first_word, stem_of
from hellora.data.loading import load_splits
from hellora.data.settings import DataSettings
from hellora.data.sources import load_corpus

WANTED = ("train", "test", "validation", "dev", "proxy")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("TRAIN", "train"),
        ("training", "train"),
        ("train-00000-of-00003", "train"),
        ("Test_1", "test"),
        ("val", "validation"),
        ("eval", "validation"),
        ("dev", "dev"),  # wanted by that name
        ("proxy", "proxy"),
        ("trainer", None),
        ("train_notes", None),
        ("latest", None),
        ("my_test", None),
        ("test tube", None),
    ],
)
def test_a_split_is_a_whole_name(name: str, split: str | None) -> None:
    assert split_of(name, WANTED) == split


def test_folders_are_not_counted() -> None:
    assert folder_split("Test", WANTED) == "test"
    assert folder_split("test2", WANTED) is None


@pytest.mark.parametrize(
    ("name", "split"), [("train_100pc", "train"), ("test-30pc", "test"), ("train_test", None), ("latest_train", None)]
)
def test_the_first_word_of_a_name(name: str, split: str | None) -> None:
    assert split_of_first_word(name, WANTED) == split


def test_suffixes_in_any_case_and_compression() -> None:
    assert format_of(Path("A.CSV.GZ")) == ".csv"
    assert stem_of(Path("A.b.CSV.GZ")) == "A.b"
    assert format_of(Path(".csv")) is None
    assert format_of(Path("a.TSV")) == ".tsv"
    assert format_of(Path("a.xlsx")) is None


def write(folder: Path, **files: str) -> str:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_csv", ".csv").replace("_jsonl", ".jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text,label\n{text},1\n" if path.suffix == ".csv" else f'{{"text": "{text}", "label": 1}}\n')
    return str(folder)


def read(name: str, subset: str = "") -> dict[str, list[str]]:
    source = load_splits(name, subset, "train", WANTED[1:])
    return {split: each.data["text"][:] for split, each in source.splits.items()}


def test_splits_in_two_formats(tmp_path: Path) -> None:
    assert read(write(tmp_path, train_jsonl="a", test_csv="b")) == {"train": ["a"], "test": ["b"]}


def test_a_copy_in_another_format_is_read_once(tmp_path: Path) -> None:
    name = write(tmp_path, train_jsonl="a", train_csv="a", test_csv="b")
    assert read(name) == {"train": ["a"], "test": ["b"]}
    assert any("the same rows as" in note for note in load_splits(name, "", "train", WANTED[1:]).notes)


def test_two_names_of_one_split(tmp_path: Path) -> None:
    name = write(tmp_path, train_csv="a", val_csv="b", eval_csv="c")
    with pytest.raises(InputError, match=r"data\.test_split: .* has eval and val, which both mean 'validation'"):
        read(name)
    assert read(write(tmp_path, validation_csv="d")) == {"train": ["a"], "validation": ["d"]}


def test_splits_in_several_folders(tmp_path: Path) -> None:
    name = write(tmp_path, en__train_csv="a", de__train_csv="b")
    with pytest.raises(InputError, match=r"data\.subset: .* has splits in several folders \(de, en\): name one"):
        read(name)
    assert read(name, "en") == {"train": ["a"]}
    assert read(write(tmp_path, train_csv="above")) == {"train": ["above"]}


def test_a_class_with_the_name_of_a_split(tmp_path: Path) -> None:
    """`train` beside `bus`, with folders in both: a split or a class? A guess would be wrong half of the time."""
    for place in ("train/old", "bus/old"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "1.png").touch()
    with pytest.raises(InputError, match="has 'train' beside 'bus', and it cannot be told whether these are splits or"):
        load_splits(str(tmp_path), "", "train", WANTED[1:], "image")


def test_what_datasets_saved(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["b", "a"])})
    one = Dataset.from_dict({"text": ["x", "y"], "label": [0, 1]}, features=features)
    DatasetDict({"train": one, "valid": one}).save_to_disk(str(tmp_path / "both"))
    one.save_to_disk(str(tmp_path / "one"))
    corpus = load_corpus(DataSettings(name=str(tmp_path / "both"), proxy_examples=0), "text", 0)
    assert (corpus.labels, len(corpus.test)) == (("b", "a"), 2)
    assert list(load_splits(str(tmp_path / "one"), "", "train", WANTED[1:]).splits) == ["train"]


CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: texts/a*.csv
  - split: test
    path: [texts/b.csv]
- config_name: de
  data_files: de.csv
---
# About it
"""


def test_what_a_readme_declares(tmp_path: Path) -> None:
    name = write(tmp_path, texts__a1_csv="a", texts__a2_csv="b", texts__b_csv="c", de_csv="d")
    (tmp_path / "README.md").write_text(CARD)
    assert read(name, "en") == {"train": ["a", "b"], "test": ["c"]}
    assert read(name, "de") == {"train": ["d"]}
    with pytest.raises(InputError, match=r"data\.subset: .* has the configurations en, de: name one of them"):
        read(name)
    assert any("README.md names other files" in note for note in load_splits(name, "de", "train", ()).notes)
    (tmp_path / "de.csv").unlink()
    with pytest.raises(InputError, match=r"declares de\.csv in its README\.md, and has no such file"):
        read(name, "de")


def test_a_table_says_the_classes_of_images_in_no_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for name in ("1", "2"):
            Image.new("L", (2, 2)).save(tmp_path / split / f"{name}.png")
        (tmp_path / split / "metadata.csv").write_text("file_name,label\n1.png,cat\n2.png,dog\n")
    corpus = load_corpus(DataSettings(name=str(tmp_path), proxy_examples=0), "image", 0)
    assert (corpus.labels, corpus.train["label"][:], len(corpus.test)) == (("cat", "dog"), [0, 1], 2)


def test_equal_rows_of_two_splits_are_counted(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,1\nb,2\n")
    (tmp_path / "test.csv").write_text("text,label\nb,2\nc,1\n")
    corpus = load_corpus(DataSettings(name=str(tmp_path), proxy_examples=0), "text", 0)
    assert "1 of the 2 test examples is among the training examples, too" in corpus.notes


def test_rows_over_several_lines_are_said(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text('text,label\n"two\nlines",1\nb,2\n')
    notes = load_splits(str(tmp_path / "all.csv"), "", "train", ()).notes
    assert notes[0].endswith("all.csv as 'train', 1 row over several lines, the first from line 2 to 3")


def test_semicolons_are_said_and_commas_stay_in_their_cells(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text('\n"text";label\na, or b;1\n"c; d";2\n', encoding="utf-8-sig")
    source = load_splits(str(tmp_path / "all.csv"), "", "train", ())
    assert source.notes[0].endswith("all.csv as 'train', cells between semicolons")
    assert source.splits["train"].data["text"][:] == ["a, or b", "c; d"]


@pytest.mark.parametrize("text", ['"Great" they say,1', '"open,1\nb,2', '"He said \\"no\\"",1'])
def test_a_quotation_mark_in_the_middle_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "all.csv").write_text(f"text,label\nfine,1\n{text}\nlast,2\n")
    with pytest.raises(InputError, match=r"all\.csv is .*\(line 3( to \d)?: a quotation mark closes in the middle"):
        load_splits(str(tmp_path / "all.csv"), "", "train", ())


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ('[{"a": 7}, {"a": 2.5}]', ["7", "2.5"]),
        ('{"a": 1.10}\n{"a": 1e22}\n{"a": 12345678901234567890123}', ["1.10", "1e22", "12345678901234567890123"]),
        ('{"data": [{"a": true}, {"a": null}]}', ["true", None]),
        ('{"a": ["x", "NaN"]}', ["x", "NaN"]),
        ('[{"a": NaN}, {"a": "2024-01-02T00:00:00"}]', [None, "2024-01-02T00:00:00"]),
    ],
)
def test_json_values_stand_as_they_are_written(tmp_path: Path, text: str, cells: list[str | None]) -> None:
    (tmp_path / "all.json").write_text(text)
    assert load_splits(str(tmp_path / "all.json"), "", "train", ()).splits["train"].data["a"][:] == cells


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}\n', "line 1: 'a' is there twice"),
        ('{"a": "x"}\n{"a": ["y"]}\n', "'a' is now a text, now something else: compare 1 and 2"),
        ('{"a": "x"}\n["y"]\n', "line 2 is no object"),
    ],
)
def test_json_that_cannot_be_meant(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "all.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        load_splits(str(tmp_path / "all.jsonl"), "", "train", ())


def test_fractions_of_parquet_are_refused_in_a_template(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"q": ["a", "b"] * 5, "a": [1.0, None] * 5}).to_parquet(tmp_path / "all.parquet")
    settings = DataSettings(name=str(tmp_path), prompt="{q}", response="{a}")
    with pytest.raises(InputError, match=r"column 'a' of .* holds numbers with a fraction, .*: write numbers as texts"):
        load_corpus(settings, "instruction", 0)


def test_the_fingerprint_is_of_rows_columns_and_order(tmp_path: Path) -> None:
    def of(text: str) -> str:
        (tmp_path / "all.csv").write_text(text)
        return load_corpus(DataSettings(name=str(tmp_path / "all.csv"), proxy_examples=0), "text", 0).fingerprint

    first = of("text,label\na,1\nb,2\nc,1\n")
    assert of("label,text\n1,a\n2,b\n1,c\n") == first, "what is not read does not count"
    assert of("text,label\nb,2\na,1\nc,1\n") != first
    assert of("text,label\na,1\nb,2\nC,1\n") != first
