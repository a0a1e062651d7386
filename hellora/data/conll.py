"""Read files of columns as the CoNLL tasks have them: a word a line, its tag last, an empty line behind each sentence.

Columns stand between tabs where every line has one, else between white space. Lines of `-DOCSTART-` are left out, and
so are comments: lines before a sentence that begin with `#`, unless they are a word and its tag like others.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow  # type: ignore[import-untyped]
from datasets import Dataset

from hellora.data.tag_schemes import OUTSIDE, TYPED, are_of_entities

START = "-DOCSTART-"
LOOKED_AT = 20  # sentences, to tell whether the first column has words
RANGE = re.compile(r"\d+[-.]\d+")  # of CoNLL-U: two words that are written as one, or one that is not written
Columns = list[str]


@dataclass(frozen=True)
class Line:
    """A line has a word: its number in the file, from 1, and its columns."""

    number: int
    columns: Columns


def read_columns(text: str) -> tuple[Dataset, list[int], str]:
    """Read the sentences of a file as `tokens` and `tags`; also the line where each begins, and a note.

    A word has no tag (None) where its line has more or fewer columns than most lines have.

    Raises:
        ValueError: there is no sentence, or the columns are not words first and tags last.
    """
    sentences = sentences_of(text)
    if not sentences:
        raise ValueError("there is no sentence in it")
    ((width, _),) = Counter(len(line.columns) for sentence in sentences for line in sentence).most_common(1)
    if width < 2:
        raise ValueError(f"line {sentences[0][0].number}: there is a word, and no tag behind it")
    check_words(sentences[:LOOKED_AT], width)
    check_tags(sentences, width)
    tokens = [[line.columns[0] for line in sentence] for sentence in sentences]
    tags = [[line.columns[-1] if len(line.columns) == width else None for line in sentence] for sentence in sentences]
    kind = pyarrow.list_(pyarrow.string())
    table = pyarrow.table([pyarrow.array(tokens, kind), pyarrow.array(tags, kind)], names=["tokens", "tags"])
    note = f"the last of its {width} columns as tags" if width > 2 else ""
    return Dataset(table), [sentence[0].number for sentence in sentences], note


def sentences_of(text: str) -> list[list[Line]]:
    """Return the lines of each sentence."""
    lines = re.split(r"\r\n|\n|\r", text)
    plain = [line for line in lines if line.strip(" \t") and not line.startswith(("#", START))]
    tabs = all("\t" in line for line in plain)
    tags = {OUTSIDE, *(split_up(line, tabs)[-1] for line in plain)}
    sentences: list[list[Line]] = [[]]
    for number, line in enumerate(lines, 1):
        columns = split_up(line, tabs)
        if not line.strip(" \t") or line.startswith(START):
            sentences.append([])
        elif sentences[-1] or not line.startswith("#") or is_word(columns, tags):
            sentences[-1].append(Line(number, columns))
    return [sentence for sentence in sentences if sentence]


def split_up(line: str, tabs: bool) -> Columns:
    """Split a line into its columns. Spaces that are no ASCII are part of a word."""
    return [each.strip(" ") for each in line.split("\t")] if tabs else re.split(r"[ \t]+", line.strip(" \t"))


def is_word(columns: Columns, tags: set[str]) -> bool:
    """Say whether a line that begins with # is a word and its tag."""
    return len(columns) > 1 and (columns[-1] in tags or bool(TYPED.fullmatch(columns[-1])))


def check_words(sentences: Sequence[Sequence[Line]], width: int) -> None:
    """Raise ValueError where the first column counts the words of each sentence, or names the document."""
    first = [[line.columns[0] for line in sentence] for sentence in sentences]
    where = f"line {sentences[0][0].number}: its first column"
    numbers = [[word for word in words if not RANGE.fullmatch(word)] for words in first]
    if (
        any(numbers)
        and sum(map(len, first)) > 1
        and (all(map(count, numbers)) or count([each for of in numbers for each in of]))
    ):
        raise ValueError(f"{where} counts words: let the word be first, and the tag last")
    if width > 3 and len(first) > 1 and len({word for words in first for word in words}) == 1:
        raise ValueError(f"{where} is always {first[0][0]!r}: let the word be first, and the tag last")


def count(words: Sequence[str]) -> bool:
    """Say whether words are numbers that follow each other, from 0 or 1."""
    return any([*words] == [str(place) for place in range(start, start + len(words))] for start in (0, 1))


def check_tags(sentences: Sequence[Sequence[Line]], width: int) -> None:
    """Raise ValueError where another column than the last has tags of entities, and the last one words."""
    columns = [line.columns for sentence in sentences for line in sentence if len(line.columns) == width]
    last = {each[-1] for each in columns}
    for place in range(width - 1):
        tags = {each[place] for each in columns}
        typed = any(map(TYPED.fullmatch, tags)) and are_of_entities(tags)
        if typed and len(last) > len(tags) and not are_of_entities(last):
            raise ValueError(
                f"its column {place + 1} of {width} has tags ({', '.join(sorted(tags)[:3])}), and the last one words: "
                f"let the word be first, and the tag last"
            )
