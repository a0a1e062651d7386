"""Several labels of an example: lists, texts with a separator, one-hot columns; what is wrong is named by its row."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hellora.core.errors import InputError
from hellora.data.one_file import read_rows
from hellora.data.settings import DataSettings
from hellora.data.sides import agreed, own_classes, own_split, read_own
from hellora.data.sources import Corpus, load_corpus

SETS = [["sea", "sky"], [], ["soil"], ["sky"]]
WANTED = [[1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]]  # of sea, sky, soil


def corpus(file: Path, **settings: Any) -> Corpus:
    usual = {"name": str(file.parent), "label": "labels", "proxy_examples": 0}
    return load_corpus(DataSettings(**{**usual, **settings}), "text_labels", seed=0)


def in_csv(folder: Path, cells: list[str], name: str = "train", heading: str = "labels") -> Path:
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", heading], *([f"text {i}", cell] for i, cell in enumerate(cells))])
    return folder / f"{name}.csv"


def test_every_form_is_read_alike(tmp_path: Path) -> None:
    """Lists of JSON and of CSV, texts, and a column for each label; in the last, the settings say which there are."""
    as_json = tmp_path / "json" / "train.jsonl"
    as_json.parent.mkdir()
    as_json.write_text("".join(json.dumps({"text": f"text {i}", "labels": s}) + "\n" for i, s in enumerate(SETS)))
    written, texts, columns = (tmp_path / name for name in ("written", "texts", "columns"))
    for folder in (written, texts, columns):
        folder.mkdir()
    in_csv(written, [json.dumps(labels) if labels or i else "" for i, labels in enumerate(SETS)])
    in_csv(texts, [" ; ".join(labels) for labels in SETS])
    (columns / "train.csv").write_text("text,sea,sky,soil\na,1,true,0\nb,0,0,0\nc,0,False,1.0\nd,0,1,0\n")
    ways: list[tuple[Path, dict[str, Any]]] = [
        (as_json, {}),
        (written / "train.csv", {}),
        (texts / "train.csv", {"separator": ";"}),
        (columns / "train.csv", {"labels": ("sea", "sky", "soil")}),
    ]
    for file, settings in ways:
        (file.parent / f"test{file.suffix}").write_bytes(file.read_bytes())
        found = corpus(file, **settings)
        assert found.labels == ("sea", "sky", "soil")
        assert found.test["targets"][:] == WANTED, file
        assert any("1 of its rows have none" in note for note in found.notes)


def test_a_sources_own_names_are_the_labels_in_its_order(tmp_path: Path) -> None:
    """Also those that no row has."""
    features = Features({"text": Value("string"), "labels": [ClassLabel(names=["joy", "anger", "fear"])]})
    data = Dataset.from_dict({"text": ["a", "b", "c"], "labels": [[2, 0], [], [0]]}, features=features)
    data.save_to_disk(tmp_path / "saved")
    found = read_rows(
        str(tmp_path / "saved"), DataSettings(label="labels"), "text_labels", ("joy", "anger", "fear"), True
    )
    assert found.data["targets"][:] == [[1, 0, 1], [0, 0, 0], [1, 0, 0]]
    classes = own_classes(
        own_split(DataSettings(name=str(tmp_path / "saved"), label="labels"), "text_labels"),
        DataSettings(label="labels"),
        "text_labels",
    )
    assert classes is not None
    assert (classes.values, classes.present, classes.declared) == (("joy", "anger", "fear"), ("fear", "joy"), True)


def test_examples_that_all_have_no_label_are_labelled(tmp_path: Path) -> None:
    """Those of one client may be so."""
    settings = DataSettings(name=str(in_csv(tmp_path, ["[]", "[]"])), label="labels")
    classes = own_classes(own_split(settings, "text_labels"), settings, "text_labels")
    assert classes is not None
    assert classes.values == ()


@pytest.mark.parametrize(
    ("cells", "settings", "words"),
    [
        (["sea", "sea, sky"], {}, "train.csv, line 3 has the labels 'sea, sky': set data.separator = ','"),
        (["sea;sky", "sea;sky|soil"], {"separator": ";"}, "'sea;sky|soil', with | beside the separator ;"),
        (['["sea"]', '["sky", ""]'], {}, "its 'labels' has an empty label"),
        (["1", "2"], {"labels": ("labels",)}, "its 'labels' is '2', and neither 0 nor 1"),
        (["1", ""], {"labels": ("labels",)}, "its 'labels' is empty"),
    ],
)
def test_what_is_wrong_is_named_by_its_row(
    cells: list[str], settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        corpus(in_csv(tmp_path, cells), strict=True, **settings)


def test_a_missing_list_is_no_empty_one(tmp_path: Path) -> None:
    rows = [{"text": "a", "labels": ["x"]}, {"text": "b", "labels": []}, {"text": "c", "labels": None}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r"its 'labels' is missing \(an empty list has no labels\)"):
        corpus(tmp_path / "train.json", strict=True)


def test_a_label_of_the_test_split_alone_is_refused_and_makes_a_public_example_unlabelled(tmp_path: Path) -> None:
    file = in_csv(tmp_path, ["sea,sky", "sky", ""])
    in_csv(tmp_path, ["sea", "sand"], "test")
    with pytest.raises(InputError, match=r"test\.csv, line 3 has the label 'sand', which no training example has"):
        corpus(file, separator=",")
    in_csv(tmp_path, ["sea", ""], "test")
    public = in_csv(tmp_path, ["sand", "", "sky"], "proxy")
    (tmp_path / "elsewhere").mkdir()
    public.rename(tmp_path / "elsewhere" / "train.csv")
    there = tmp_path / "elsewhere" / "train.csv"
    there.write_text(there.read_text().replace("text ", "other "))
    found = corpus(file, separator=",", public=str(tmp_path / "elsewhere"))
    assert found.public["targets"][:] == [[-100, -100], [0, 0], [0, 1]]


def test_clients_agree_on_their_labels(tmp_path: Path) -> None:
    """Each names those that occur, in whatever form it has them."""
    settings = []
    for name, cells, separator in (("a", ["sea,sky"], ","), ("b", ["soil", ""], "")):
        (tmp_path / name).mkdir()
        file = in_csv(tmp_path / name, cells)
        settings.append(DataSettings(name=str(file), label="labels", separator=separator))
    splits = [own_split(each, "text_labels") for each in settings]
    own = [own_classes(split, each, "text_labels") for split, each in zip(splits, settings, strict=True)]
    classes = agreed([each for each in own if each is not None])
    assert classes.values == ("sea", "sky", "soil")
    rows, _ = read_own(splits[1], settings[1], "text_labels", classes)
    assert rows["targets"][:] == [[0, 0, 1], [0, 0, 0]]
