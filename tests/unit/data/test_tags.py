"""Words with tags, in the forms that people have them; and rows that are none."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hellora.core.errors import InputError
from hellora.core.metrics import UNLABELLED
from hellora.data.loading import Split
from hellora.data.one_file import read_rows
from hellora.data.reader import Reader
from hellora.data.settings import DataSettings
from hellora.data.sources import Corpus, load_corpus
from hellora.data.tags import classes_of, read_tagged

WORDS, TAGS = ["Peter", "Pan", "is", "in", "London"], ["B-PER", "I-PER", "O", "O", "B-LOC"]
CLASSES = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
SETTINGS = DataSettings()


def corpus(folder: Path, rows: list[dict[str, Any]], test: list[dict[str, Any]], **settings: Any) -> Corpus:
    for name, each in (("train", rows), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
    return load_corpus(DataSettings(name=str(folder), **settings), "tokens", seed=0)


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"tokens": WORDS, "tags": TAGS}, {}),
        ({"words": WORDS, "ner_tags": TAGS}, {}),
        ({"tokens": " ".join(WORDS), "labels": "B-PER  I-PER O\tO B-LOC"}, {}),
        ({"text": " ".join(WORDS), "tags": " ".join(TAGS)}, {}),
        ({"tokens": json.dumps(WORDS), "tags": str(TAGS)}, {}),  # as CSV has lists
        ({"mots": WORDS, "étiquettes": TAGS}, {"tokens": "mots", "tags": "étiquettes"}),
    ],
)
def test_every_form_says_the_same(row: dict[str, Any], settings: dict[str, str], tmp_path: Path) -> None:
    found = corpus(tmp_path, [row] * 3, [row] * 10, **settings)
    assert found.labels == CLASSES
    assert found.train[0] == {"tokens": WORDS, "tags": [1, 3, 4, 4, 0]}


def test_numbers_are_named_by_their_source() -> None:
    """In the order that it declares, where it declares B and I of each type; the scheme of the numbers is told."""
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    features = Features({"tokens": [Value("string")], "ner_tags": [ClassLabel(names=names)]})
    split = Split(Dataset.from_dict({"tokens": [WORDS, ["a"]], "ner_tags": [[1, 2, 0, 0, 3], [4]]}, features), "x")
    assert classes_of(split, SETTINGS) == (tuple(names), True)
    reader = Reader.for_split(split, SETTINGS, "tokens")
    assert reader.read(split)["tags"][:] == [[1, 2, 0, 0, 3], [3]]
    assert "IOB1 and IOB2 mixed, read as IOB2, of entities (LOC, PER)" in reader.notes[0]


def test_plain_tags_stay_as_they_are() -> None:
    split = Split(Dataset.from_dict({"tokens": [["we", "saw"]], "pos_tags": [["PRON", "VERB"]]}), "x")
    assert classes_of(split, SETTINGS) == (("PRON", "VERB"), False)
    assert read_tagged(split, SETTINGS, {}).note == "words ('tokens') with tags ('pos_tags'): plain ones (PRON, VERB)"


def test_rows_that_are_no_sentences_are_named() -> None:
    rows = [
        (["a"], ["O", "O"]),
        (["a", " "], ["O", "O"]),
        ([], []),
        (["a", "b"], ["O", None]),
        (["a"], ["PER"]),
        (["a", "b"], ["B-PER", "O"]),
    ]
    faults: dict[int, str] = {}
    data = Dataset.from_dict({"tokens": [words for words, _ in rows], "tags": [tags for _, tags in rows]})
    found = read_tagged(Split(data, "x"), SETTINGS, faults)
    assert faults == {
        0: "it has 1 words and 2 tags",
        1: "its word 2 is empty",
        2: "it has no words",
        3: "its word 2 ('b') has no tag",
        4: "its tag 'PER' is neither O nor of an entity, as B-PER is",
    }
    assert (found.words[5], found.tags[5], found.words[0]) == (["a", "b"], ["B-PER", "O"], [])


def test_a_tag_that_no_training_example_has_is_a_fault_of_its_row(tmp_path: Path) -> None:
    good, odd = {"tokens": WORDS, "tags": TAGS}, {"tokens": ["a"], "tags": ["B-ORG"]}
    found = corpus(tmp_path, [good] * 3, [good] * 29 + [odd])
    assert len(found.test) + len(found.proxy) == 29
    assert any("it has the tag 'B-ORG', which no training example has" in note for note in found.notes)
    with pytest.raises(InputError, match=r"data\.unusable: 1 of the 10 rows of .* cannot be used, more than 5%"):
        corpus(tmp_path, [good] * 3, [good] * 9 + [odd])


def test_predictions_need_no_tags(tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("text\nPeter  is\nin London\n")
    rows = read_rows(str(tmp_path / "more.csv"), SETTINGS, "tokens", CLASSES, labelled=False)
    assert rows.data[:] == {"tokens": [["Peter", "is"], ["in", "London"]]}
    with pytest.raises(InputError, match=r"data\.tags: .* has no column of tags \(tags, ner_tags, labels, pos_tags\)"):
        read_rows(str(tmp_path / "more.csv"), SETTINGS, "tokens", CLASSES, labelled=True)


def test_public_data_may_have_other_tags_or_none() -> None:
    reader = Reader(SETTINGS, "tokens", ("B-PER", "I-PER", "O"), {"B-PER": 0, "I-PER": 1, "O": 2})
    tagged = Split(Dataset.from_dict({"tokens": [["a", "b"]], "tags": [["B-ORG", "O"]]}), "x")
    assert reader.read(tagged, may_lack_labels=True)["tags"][:] == [[UNLABELLED, 2]]
    assert reader.read(Split(tagged.data.remove_columns("tags"), "x"), may_lack_labels=True).column_names == ["tokens"]
