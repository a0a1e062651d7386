"""Files as careless people have them: what a careful person reads in them, or why they are refused."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hellora.core.errors import InputError
from hellora.data.loading import Split
from hellora.data.one_file import read_rows
from hellora.data.reader import Reader
from hellora.data.settings import Columns, DataSettings
from hellora.data.sources import Corpus, load_corpus
from hellora.data.tags import read_tagged
from hellora.data.written_lists import written_list

SENTENCES = "".join(f"Peter{i} B-PER\nPan I-PER\nsaw O\nRome B-LOC\n\n" for i in range(30))


def read(folder: Path, columns: Columns, **settings: Any) -> Corpus:
    usual = {"name": str(folder), "proxy_examples": 0, "partitioner": "iid"}
    return load_corpus(DataSettings(**{**usual, **settings}), columns, seed=0)


def in_csv(folder: Path, heading: list[str], rows: list[list[str]]) -> None:
    with (folder / "train.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([heading, *rows])


# ------------------------------------------------------------------------------------------------------------- lists


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ('["EU", 7, 1.10, true, null]', ["EU", "7", "1.10", "true", None]),
        ("['EU', \"it's\", 'a\\'b\\d', None]", ["EU", "it's", "a'b\\d", None]),
        ("['EU' 'rejects'\n 'it']", ["EU", "rejects", "it"]),  # as numpy prints them, and Python reads one text
        ("[3 0\n -1]", ["3", "0", "-1"]),
        ("[0. 1.5 nan]", ["0.", "1.5", None]),
        ("[]", []),
        (" [ ] ", []),
        ('["a", ["b"]]', ["a", ["b"]]),
        *[(text, None) for text in ('["a", "b"', "[a, b]", "['a' ... 'b']", "['a''b']", "a", "", "[" * 10**5)],
    ],
)
def test_lists_that_are_written_out(text: str, items: list[Any] | None) -> None:
    assert written_list(text) == items


# ------------------------------------------------------------------------------------------------------------- tags


@pytest.mark.parametrize(
    ("words", "tags", "why"),
    [
        ("['a' 'b']", "['O' 'B-PER']", ""),
        ('["a", "b"', '["O", "O"]', "its tokens begin with a bracket, and are no list"),
        ('["a", "b"]', "[O B-PER]", "its tags begin with a bracket, and are no list"),
        ('[["a", "b"]]', '["O"]', "it has a list among its tokens, not a text or a whole number"),
        ('["a", "b"]', '["O", "-100"]', "its word 2 ('b') has no tag"),
        ('["a", "b"]', '["B", "I"]', "its tag 'B' is neither O nor of an entity, as B-PER is"),
        ('["a", "b"]', '["b-PER", "O"]', "its tag 'b-PER' is neither O nor of an entity, as B-PER is"),
    ],
)
def test_a_row_of_words_and_tags_as_csv_has_them(words: str, tags: str, why: str) -> None:
    """Beside one as it should be."""
    data = Dataset.from_dict({"tokens": ['["x", "y"]', words], "tags": ['["B-PER", "O"]', tags]})
    faults: dict[int, str] = {}
    found = read_tagged(Split(data, "x"), DataSettings(), faults)
    assert faults.get(1, "") == why
    assert found.words[1] == ([] if why else ["a", "b"])


def test_tags_that_are_no_texts_are_named_by_their_kind() -> None:
    data = Dataset.from_dict({"tokens": [["a"], ["b"]], "tags": [[1.0], [0.0]]})
    faults: dict[int, str] = {}
    read_tagged(Split(data, "x"), DataSettings(), faults)
    assert faults == dict.fromkeys(range(2), "it has a float among its tags, not a text or a whole number")
    with pytest.raises(InputError, match=r"data\.tags: column 'tokens' is that of the words"):
        read_tagged(Split(data, "x"), DataSettings(tags="tokens"), {})


def columns_of(*order: int) -> str:
    """The sentences with a third column, a lemma, and the columns in this order."""
    lines = [[*line.split(), line.split()[0].lower()] if line else [] for line in SENTENCES.split("\n")]
    return "\n".join(" ".join(line[place] for place in order) if line else "" for line in lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SENTENCES.replace("B-", "b-").replace("I-", "i-"), "has the tags O, b-LOC, b-PER, i-PER, which seem to be"),
        (SENTENCES.replace(" O", " o"), "has the tags B-LOC, B-PER, I-PER, o, which seem to be of entities"),
        (re.sub(r"([BI])-(\w+)", r"\2-\1", SENTENCES), "has the tags LOC-B, O, PER-B, PER-I, which seem"),
        (SENTENCES.replace("-", ":"), "has the tags B:LOC, B:PER, I:PER, O, which seem to be of entities"),
        (columns_of(1, 0), "its column 1 of 2 has tags (B-LOC, B-PER, I-PER), and the last one words"),
        (columns_of(0, 1, 2), "its column 2 of 3 has tags (B-LOC, B-PER, I-PER), and the last one words"),
        ("1-2\tdu\t_\n1\tde\tADP\n2\tle\tDET\n\n" * 20, "line 1: its first column counts words"),
        ("1\tde\tADP\n\n1\tle\tDET\n\n" * 20, "line 1: its first column counts words"),
        ("".join(f"{i} w{i} O\n" + "\n" * (i % 4 == 3) for i in range(40)), "line 1: its first column counts words"),
        ((SENTENCES + "café O\n").encode("latin-1"), "it is not UTF-8: save the file as UTF-8"),
    ],
)
def test_files_of_columns_that_are_refused(text: str | bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=re.escape(words)):
        read(tmp_path, "tokens")


def test_scores_and_other_plain_columns_are_read(tmp_path: Path) -> None:
    """Words that are ranges of numbers, tags of entities without B and I beside chunks."""
    (tmp_path / "train.conll").write_text("2-1 B-NP SCORE\nfor I-NP O\nRome B-VP LOC\n\n1-1 B-NP SCORE\n\n" * 10)
    assert read(tmp_path, "tokens").labels == ("LOC", "O", "SCORE")


# ------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("usual", "odd", "separator", "found"),
    [
        ("sea;sky", " sea ;; sky;sea;", ";", [1, 1]),
        ("sea, sky", "sea,sky", ", ", [1, 1]),
        ('["sea", "sky"]', "['sea' 'sky']", "", [1, 1]),
        ("['sea', 'sky']", "", "", [0, 0]),
        ("sea;sky", "sea,sky", ";", "its 'label' has 'sea,sky', labels with ',' between them"),
        ("sea sky", "sea\tsky", " ", "its 'label' has 'sea\tsky', labels with '\\t' between them"),
        ('["sea", "sky"]', "sea", "", "its 'label' is 'sea', and no list as others are"),
        ('["sea", "sky"]', '["sea"', "", "its 'label' is '[\"sea\"', and no list as others are"),
        ('["sea", "sky"]', '[["sea"]]', "", "its 'label' has a list among its labels, not a text or a whole number"),
        ('["sea", "sky"]', "null", "", "its 'label' is missing (an empty list has no labels)"),
    ],
)
def test_a_row_of_labels(usual: str, odd: str, separator: str, found: Any, tmp_path: Path) -> None:
    """Beside others with both labels, or with one alone."""
    alone = [f'["{label}"]' if usual.startswith("[") else label for label in ("sea", "sky")]
    in_csv(tmp_path, ["text", "label"], [[f"text {i}", [usual, *alone][i % 3]] for i in range(40)] + [["odd", odd]])
    corpus = read(tmp_path, "text_labels", separator=separator, test_fraction=0.02)
    assert corpus.labels == ("sea", "sky")
    rows = {row["text"]: row["targets"] for data in (corpus.train, corpus.test) for row in data}
    if isinstance(found, str):
        assert "odd" not in rows
        assert any(f"left out: 1 of the 41 rows of {tmp_path.name}/train.csv (1: {found}, " in n for n in corpus.notes)
    else:
        assert rows["odd"] == found


@pytest.mark.parametrize(
    ("cells", "settings", "words"),
    [
        (['["sea"]', '["sky"]'], {"separator": ","}, "the labels of {}/train.csv ('label') are lists: remove it"),
        (["sea", "sky", "sea/sky"], {}, "{}/train.csv, line 4 has the labels 'sea/sky': set data.separator = '/'"),
        (["sea", "sky", "sea\tsky"], {}, "has the labels 'sea\\tsky': set data.separator = \"\\t\""),
        (["[1, 0, 1]", "[0, 0, 1]"], {}, "the lists of {}/train.csv ('label') are 0 and 1 for each label in turn"),
        (["0", "0"], {"labels": ("label",)}, "has a label: name another column"),
        (["", ""], {"labels": ("label",)}, "data.labels: {}/train.csv is unlabelled, for its column 'label'"),
    ],
)
def test_labels_that_are_refused(cells: list[str], settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    in_csv(tmp_path, ["text", "label"], [[f"text {i}", cell] for i, cell in enumerate(cells)])
    with pytest.raises(InputError, match=re.escape(words.format(tmp_path.name))):
        read(tmp_path, "text_labels", **settings)


def test_what_is_predicted_may_have_any_labels(tmp_path: Path) -> None:
    """They are not looked at, where they would be refused otherwise."""
    in_csv(tmp_path, ["text", "label"], [["a", "[1, 0, 0]"], ["b", "sea, sky"]])
    for columns, names in (("text_labels", ("sea", "sky")), ("text_numbers", ("value",))):
        rows = read_rows(str(tmp_path / "train.csv"), DataSettings(), columns, names, labelled=False).data
        assert rows["text"][:] == ["a", "b"]


# ---------------------------------------------------------------------------------------------------- classes, columns


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["pos", "Pos", "neg"], "of the classes of x, 'Pos' and 'pos' differ in case or spaces only"),
        (["true", "false", "true "], "of the classes of x, 'true' and 'true ' differ in case or spaces only"),
        (["0", "1", "10"], "the classes of x are numbers (0, 1, 10): write names in that column if they have some"),
        (["a", "b", "1"], ""),
    ],
)
def test_what_of_classes_may_be_meant_otherwise_is_said(labels: list[str], said: str) -> None:
    split = Split(Dataset.from_dict({"text": labels, "label": labels}), "x")
    reader = Reader.for_split(split, DataSettings(), "text")
    reader.say_oddities("x", split.data.column_names)
    assert reader.notes == ([said] if said else [])


def test_a_second_text_that_is_not_read_is_said(tmp_path: Path) -> None:
    rows = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "label": "xy"[i % 2]} for i in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone, pair = (read(tmp_path, "text", text="sentence1", text_pair=each) for each in ("", "sentence2"))
    said = [note for note in alone.notes if "data.text_pair = 'sentence2' reads both" in note]
    assert len(said) == 1
    assert not any("data.text_pair" in note for note in pair.notes)
    for settings, words in (
        ({"text": "label"}, "data.label: 'label' is the column of data.text, too"),
        (
            {"text": "sentence1", "text_pair": "sentence1"},
            "data.text_pair: 'sentence1' is the column of data.text, too",
        ),
        ({"text": "sentence1", "text_pair": "label"}, "data.label: 'label' is the column of data.text_pair, too"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            read(tmp_path, "text", **settings)


def test_a_template_of_which_all_columns_are_empty_says_nothing(tmp_path: Path) -> None:
    rows = [[f"question {i}", "", "answer"] for i in range(30)] + [["", "", "nothing asked"]]
    in_csv(tmp_path, ["asked", "more", "told"], rows)
    corpus = read(tmp_path, "instruction", prompt="Question: {asked} {more}\nAnswer: ", response="{told}")
    assert len(corpus.train) + len(corpus.test) == 30
    assert any("left out: 1 of the 31 rows of" in note and "its prompt is empty" in note for note in corpus.notes)
