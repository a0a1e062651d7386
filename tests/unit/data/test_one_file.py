"""What `predict` and `evaluate` read: which rows, by which columns, with which labels."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from hellora.core.errors import InputError
from hellora.core.metrics import UNLABELLED
from hellora.data.one_file import read_rows
from hellora.data.settings import DataSettings
from hellora.data.sources import load_corpus

SETTINGS = DataSettings(text="body", label="topic")


def table(folder: Path, text: str, name: str = "rows.csv") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_labels_are_those_of_the_run_whatever_occurs_in_the_file(tmp_path: Path) -> None:
    rows = read_rows(table(tmp_path, "body,topic\nx,soil\ny,sea\n"), SETTINGS, "text", ("sea", "sky", "soil"), True)
    assert rows.data.to_dict() == {"text": ["x", "y"], "label": [2, 0]}
    assert list(rows.files) == []


@pytest.mark.parametrize("labels", [("-1", "0", "7"), ("7", "-1", "0")])
def test_labels_that_were_numbers_are_numbers_again(tmp_path: Path, labels: tuple[str, ...]) -> None:
    """JSON has them as numbers, a CSV as texts: both are meant."""
    as_texts = read_rows(table(tmp_path, "body,topic\nx,7\ny,-1\n"), SETTINGS, "text", labels, True)
    lines = "".join(json.dumps({"body": text, "topic": topic}) + "\n" for text, topic in (("x", 7), ("y", -1)))
    as_numbers = read_rows(table(tmp_path, lines, "rows.jsonl"), SETTINGS, "text", labels, True)
    expected = [labels.index("7"), labels.index("-1")]
    assert as_numbers.data["label"][:] == as_texts.data["label"][:] == expected


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_truth_values_are_labels(tmp_path: Path, suffix: str) -> None:
    rows = Dataset.from_dict({"body": ["x", "y"] * 9, "topic": [True, False] * 9})
    file = str(tmp_path / f"rows.{suffix}")
    if suffix == "csv":
        table(tmp_path, "body,topic\n" + "x,true\ny,false\n" * 9)
    else:
        (rows.to_json if suffix == "jsonl" else rows.to_parquet)(file)
    labels = load_corpus(replace(SETTINGS, name=file), "text", seed=0).labels
    assert labels == ("false", "true")
    assert read_rows(file, SETTINGS, "text", labels, True).data["label"][:] == [1, 0] * 9


def test_to_predict_needs_no_label_and_no_response(tmp_path: Path) -> None:
    file = table(tmp_path, "body\nx\ny\n")
    assert read_rows(file, SETTINGS, "text", ("sea", "sky"), False).data["label"][:] == [UNLABELLED] * 2
    with pytest.raises(InputError, match="has no column 'topic'"):
        read_rows(file, SETTINGS, "text", ("sea", "sky"), True)
    talk = DataSettings(prompt="say {body}: ", response="{answer}")
    assert read_rows(file, talk, "instruction", (), False).data["prompt"][:] == ["say x: ", "say y: "]
    with pytest.raises(InputError, match=r"data\.response: .* has no column 'answer'"):
        read_rows(file, talk, "instruction", (), True)


def test_of_several_splits_it_is_the_test_split(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        table(tmp_path, f"body\n{split}\n", f"{split}.csv")
    assert read_rows(str(tmp_path), SETTINGS, "text", ("a", "b"), False).data["text"][:] == ["validation"]
    table(tmp_path, "body\ntest\n", "test.csv")
    assert read_rows(str(tmp_path), SETTINGS, "text", ("a", "b"), False).data["text"][:] == ["test"]
    named = DataSettings(text="body", test_split="extra")
    with pytest.raises(InputError, match=r"^data\.test_split: no file or folder in .* is named 'extra'"):
        read_rows(str(tmp_path), named, "text", ("a", "b"), False)


def test_images_lie_in_one_folder_or_in_one_per_class(tmp_path: Path) -> None:
    for place in ("flat", "classes/red", "classes/blue"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / place / "a.png")
    settings = DataSettings()
    flat = read_rows(str(tmp_path / "flat"), settings, "image", ("red", "blue"), False)
    assert [Path(name).name for name in flat.files] == ["a.png"]
    classes = read_rows(str(tmp_path / "classes"), settings, "image", ("red", "blue"), True)
    assert {
        Path(name).parent.name: label for name, label in zip(classes.files, classes.data["label"], strict=True)
    } == {
        "red": 0,
        "blue": 1,
    }
