"""Files of columns: what is a sentence, a comment, a column; and folders of them."""

from pathlib import Path

import pytest

from hellora.core.errors import InputError
from hellora.data.conll import read_columns
from hellora.data.settings import DataSettings
from hellora.data.sources import load_corpus

COLUMNS = """\
-DOCSTART- -X- -X- O

# sent_id = 1
EU NNP B-NP B-ORG
# # O O
rejects VBZ B-VP O

   \t
#Paris NNP B-NP B-LOC
. . O O
"""


def test_columns_by_white_space() -> None:
    """The comment has as many columns as a word, and a tag that no word has; `#` and `#Paris` are words."""
    data, lines, note = read_columns(COLUMNS)
    assert data["tokens"][:] == [["EU", "#", "rejects"], ["#Paris", "."]]
    assert data["tags"][:] == [["B-ORG", "O", "O"], ["B-LOC", "O"]]
    assert (lines, note) == ([4, 9], "the last of its 4 columns as tags")


def test_columns_between_tabs_have_spaces_inside() -> None:
    data, lines, note = read_columns("New York\tB-LOC\r\nis\tO\r\n\r\n\u00a0\tO\r\n")
    assert data["tokens"][:] == [["New York", "is"], ["\u00a0"]]
    assert (lines, note) == ([1, 4], "")


def test_a_line_of_other_columns_has_no_tag() -> None:
    """Mixed separators, a word that is alone, and one with a space in it."""
    data, _, _ = read_columns("a\tO\nb O\nNew York B-LOC\nc\nd O\n")
    assert data["tokens"][:] == [["a", "b", "New", "c", "d"]]
    assert data["tags"][:] == [["O", "O", None, None, "O"]]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("\n\n", "there is no sentence in it"),
        ("# only\n\na\nb\n", "line 3: there is a word, and no tag behind it"),
        ("1 EU _ B-ORG\n2 is _ O\n\n1 a _ O\n", "line 1: its first column counts words"),
        ("doc 0 EU B-ORG\ndoc 1 is O\n\ndoc 0 a O\n", "line 1: its first column is always 'doc'"),
    ],
)
def test_files_of_another_kind_are_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_columns(text)


def test_a_folder_of_texts_named_like_splits(tmp_path: Path) -> None:
    """The README is no data; a row without a tag is left out, and named by its line."""
    sentences = "".join(f"word{i} O\nPeter I-PER\nPan I-PER\n\n" for i in range(29)) + "a O\nb\n"
    (tmp_path / "train.txt").write_text(sentences)
    (tmp_path / "test.txt").write_text("Anna I-PER\nis O\n")
    (tmp_path / "readme.txt").write_text("Read me.")
    corpus = load_corpus(DataSettings(name=str(tmp_path)), "tokens", seed=0)
    assert corpus.labels == ("B-PER", "I-PER", "O")
    assert (len(corpus.train), corpus.train[0]) == (29, {"tokens": ["word0", "Peter", "Pan"], "tags": [2, 0, 1]})
    assert corpus.test[0] == {"tokens": ["Anna", "is"], "tags": [0, 2]}
    notes = "\n".join(corpus.notes)
    assert "words ('tokens') with tags ('tags'): IOB1, read as IOB2, of entities (PER)" in notes
    assert "left out: 1 of the 30 rows of" in notes
    assert "its word 2 ('b') has no tag" in notes
    assert "train.txt, line 117" in notes
    with pytest.raises(InputError, match=r"does not end in \.parquet, \.jsonl, \.csv, \.tsv, \.json, nor"):
        load_corpus(DataSettings(name=str(tmp_path / "train.txt")), "text", seed=0)
