"""Find which columns of a source hold what is learned, where nobody says it: by their names, else by what is in them.

    known by their names already    conversations, prompts with responses, pairs of answers, words with tags
    images                          a column of images or of their paths, and one of labels
    texts                           the column that is called so or has the longest ones; pairs by their names
    labels                          the column that is called so, else the only one with few different values; several
                                    columns of numbers, or of 0 and 1; several labels in a text, and what separates them
    clients                         a column that is called as hospitals, users or authors are

What could be more than one of these is refused with the candidates.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from datasets import ClassLabel, Image

from hellora.core.errors import InputError
from hellora.data.cells import named
from hellora.data.file_names import IMAGES
from hellora.data.forms import CONVERSATIONS, PAIRS
from hellora.data.label_sets import ONE_HOT, SEPARATORS
from hellora.data.loading import Split
from hellora.data.numbers import are_amounts
from hellora.data.tags import TAGS, TOKENS
from hellora.data.written_lists import written_lists

TEXTS = (
    "text", "sentence", "message", "body", "content", "review", "document", "question", "utterance", "comment",
    "description", "abstract", "tweet", "query", "headline", "note", "title", "input",
)  # fmt: skip
TEXT_PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2"),
    ("text_a", "text_b"), ("question", "sentence"), ("query", "passage"), ("text", "text_pair"),
)  # fmt: skip
LABELS = (
    "label", "labels", "class", "category", "categories", "topic", "topics", "target", "sentiment", "intent", "emotion",
    "genre", "tag", "tags", "rating", "stars", "score", "output", "y",
)  # fmt: skip
CLIENTS = ("client", "client_id", "hospital", "site", "institution", "user", "user_id", "author", "speaker", "writer")
MOST_CLASSES = 1000
ROWS_OF_A_CLASS = 4  # at least, on average, where a column is no label by its name
SHORT = 5  # words of a label, on average


@dataclass(frozen=True)
class Found:
    """A setting of [data] that was found, and why."""

    value: Any
    why: str


@dataclass(frozen=True)
class Column:
    """The cells of a column, as texts where they are classes by number; those that are missing or empty left out."""

    name: str
    cells: Sequence[Any]
    declared: bool = False  # a class each, which the source names

    @property
    def are_texts(self) -> bool:
        return bool(self.cells) and all(isinstance(cell, str) for cell in self.cells)

    @property
    def are_encoded(self) -> bool:
        """Return True if its cells are bytes, as they are or as `datasets` writes images."""
        inside = [cell["bytes"] if isinstance(cell, dict) and "bytes" in cell else cell for cell in self.cells]
        return bool(inside) and all(isinstance(cell, bytes) for cell in inside)

    @property
    def are_images(self) -> bool:
        """Return True if its cells are paths of images."""
        return self.are_texts and all(cell.lower().endswith(IMAGES) for cell in self.cells)

    @property
    def are_lists(self) -> bool:
        return bool(self.cells) and all(isinstance(cell, list) for cell in self.cells)

    @property
    def different(self) -> int:
        return len(set(map(str, self.cells)))

    @property
    def words(self) -> float:
        """Return the mean number of words of a text."""
        return sum(len(str(cell).split()) for cell in self.cells) / max(1, len(self.cells))

    @property
    def are_amounts(self) -> bool:
        return are_amounts(self.cells)

    @property
    def says_whether(self) -> bool:
        """Return True if every cell is 0 or 1, false or true."""
        return bool(self.cells) and all(str(cell).strip().lower() in ONE_HOT for cell in self.cells)

    @property
    def has_classes(self) -> bool:
        """Return True if its cells look like classes: few different ones, short, each of several rows."""
        most = min(MOST_CLASSES, max(2, len(self.cells) // ROWS_OF_A_CLASS))
        return not self.are_lists and 2 <= self.different <= most and self.words <= SHORT

    @property
    def has_sets(self) -> bool:
        return self.are_lists or written_lists(self.cells) is not None or bool(self.separator)

    @property
    def separator(self) -> str:
        """Return what separates labels in its texts, of which there are fewer than combinations; "" for nothing."""
        texts = {str(cell) for cell in self.cells} if self.are_texts else set[str]()
        if written_lists(self.cells) is not None:
            return ""
        for mark in SEPARATORS:
            parts = {part.strip() for text in texts for part in text.split(mark)} - {""}
            short = sum(len(part.split()) for part in parts) <= SHORT * len(parts)
            if short and any(mark in text for text in texts) and len(parts) < len(texts):
                return mark
        return ""


def found_columns(split: Split, given: Mapping[str, Any]) -> dict[str, Found]:
    """Find the settings of [data] that say which columns are read; those that are `given` are taken as they are.

    Raises:
        InputError: there is nothing to read, or it could be in several columns; the message has their names.
    """
    check_heading(split)
    columns = {name: column_of(split, name) for name in split.data.column_names}
    if is_known_by_name(columns):
        return clients_of(columns, given)
    found: dict[str, Found] = {}
    if (image := given.get("image") or image_of(split, columns)) is not None:
        found |= {} if image == "image" else {"image": Found(image, "images, or where they lie")}
        read = [image]
    else:
        found |= text_of(split, columns, given)
        read = [each.value for each in found.values()] or [given["text"]]
    clients = clients_of({name: column for name, column in columns.items() if name not in read}, given)
    taken = {*read, *(found.value for found in clients.values())}
    left = [column for name, column in columns.items() if name not in taken]
    if not {"label", "labels"} & given.keys():
        found |= label_of(split, left, must=image is not None or len(read) > 1)
    elif "separator" not in given and "label" in given and given["label"] in columns:
        found |= separator_of(columns[given["label"]])
    return found | clients


def column_of(split: Split, name: str) -> Column:
    feature = split.data.features[name]
    if isinstance(feature, Image):
        return Column(name, ())
    cells = [cell for cell in named(split.data[name][:], feature) if cell is not None and cell != ""]
    return Column(name, cells, isinstance(feature, ClassLabel))


def check_heading(split: Split) -> None:
    """Raise InputError where what should be several columns is one."""
    (first, *others) = split.data.column_names
    mark = next((mark for mark in (";", "\t", "|") if mark in first), None)
    if mark is not None and not others:
        raise InputError(
            f"data.name: the heading of {split.where} is one column, '{first[:80]}', which {mark!r} seems to separate: "
            f"save it with commas, or with tabs as .tsv"
        )


def is_known_by_name(columns: Mapping[str, Column]) -> bool:
    """Say whether names of columns alone say what is learned."""
    names = columns.keys()
    pairs = any({prompt, response} <= names for prompt, response, _ in PAIRS)
    tagged = any({words, tags} <= names for words, tags in product(TOKENS, TAGS))
    return {"chosen", "rejected"} <= names or bool(names & {*CONVERSATIONS}) or pairs or tagged


def image_of(split: Split, columns: Mapping[str, Column]) -> str | None:
    """Return the column of images: as the source declares it, else encoded, else paths."""
    declared = [name for name in columns if isinstance(split.data.features[name], Image)]
    encoded = [name for name, column in columns.items() if column.are_encoded]
    paths = [name for name, column in columns.items() if column.are_images]
    return next(iter((*declared, *encoded, *paths)), None)


def text_of(split: Split, columns: Mapping[str, Column], given: Mapping[str, Any]) -> dict[str, Found]:
    """Find the column of texts, or the two of pairs."""
    if "text" in given:
        return {}
    pair = next((pair for pair in TEXT_PAIRS if {*pair} <= columns.keys()), None)
    if pair is not None and "text_pair" not in given:
        return {"text": Found(pair[0], "the first text of a pair"), "text_pair": Found(pair[1], "and the second")}
    texts = [column for column in columns.values() if column.are_texts and not column.are_amounts]
    by_name = first_called(TEXTS, texts)
    if by_name is not None and by_name.words > 1:
        return {"text": Found(by_name.name, called(by_name))}
    longest = sorted(texts, key=lambda column: -column.words)[:1]
    if not longest or longest[0].words <= 1:
        raise InputError(
            f"data.text: {split.where} has no column of texts (it has {', '.join(columns)}): say which with --set "
            f"data.text=COLUMN"
        )
    return {"text": Found(longest[0].name, f"the longest texts, of {longest[0].words:.0f} words on average")}


def label_of(split: Split, left: Sequence[Column], must: bool) -> dict[str, Found]:
    """Find what is to be said of each example among the columns that are left; {} where these are none, unless there
    `must` be one."""
    by_name = first_called(LABELS, [column for column in left if column.different > 1])
    declared = [column for column in left if column.declared]
    if by_name is None and len(declared) == 1:
        by_name = declared[0]
    if by_name is not None:
        check_label(split, by_name)
        return {"label": Found(by_name.name, what_of(by_name)), **separator_of(by_name)}
    for several, what in (
        ([column for column in left if column.says_whether and column.different == 2], "a column for each label"),
        ([column for column in left if column.are_amounts], "several numbers, to be predicted together"),
    ):
        if len(several) > 1:
            return {"labels": Found([column.name for column in several], what)}
    likely = [column for column in left if column.has_classes or column.are_amounts or column.has_sets]
    if len(likely) > 1:
        raise InputError(
            f"data.label: {split.where} could be labelled by {' or '.join(repr(each.name) for each in likely)}: say "
            f"which with --set data.label=COLUMN"
        )
    if likely:
        return {"label": Found(likely[0].name, what_of(likely[0])), **separator_of(likely[0])}
    if must:
        has = f"it has {', '.join(split.data.column_names)}"
        raise InputError(
            f"data.label: {split.where} has nothing that labels its examples ({has}): put images into a folder for "
            f"each class, or say which column with --set data.label=COLUMN"
        )
    return {}


def check_label(split: Split, column: Column) -> None:
    """Raise InputError where a column is called like a label and is none."""
    if column.has_sets or column.are_amounts or column.declared or column.has_classes:
        return
    if column.different > max(2, len(column.cells) // 2) or column.words > 2 * SHORT:
        raise InputError(
            f"data.label: '{column.name}' of {split.where} has {column.different} different values in "
            f"{len(column.cells)} rows, such as {str(column.cells[0])[:60]!r}, and is no class: say what is learned "
            f"with --set data.label=COLUMN or, for a language model, --set data.response={{{column.name}}}"
        )


def separator_of(column: Column) -> dict[str, Found]:
    mark = column.separator
    return {"separator": Found(mark, "between the labels of an example")} if mark else {}


def clients_of(columns: Mapping[str, Column], given: Mapping[str, Any]) -> dict[str, Found]:
    """Find a column whose values are clients, where nobody says how rows are dealt out."""
    if {"partitioner", "clients"} & given.keys():
        return {}
    for name in CLIENTS:
        column = next((each for each in columns.values() if each.name.lower() == name), None)
        if column is not None and 2 <= column.different <= min(MOST_CLASSES, len(column.cells) // ROWS_OF_A_CLASS):
            why = f"a client for each of its {column.different} values"
            return {"partitioner": Found("column", "natural clients"), "column": Found(column.name, why)}
    return {}


def first_called(names: Iterable[str], columns: Sequence[Column]) -> Column | None:
    """Return the column with the first of some names, in any case."""
    return next((column for name in names for column in columns if column.name.lower() == name), None)


def called(column: Column) -> str:
    return f"by its name; {column.words:.0f} words on average"


def what_of(column: Column) -> str:
    """Say what is in a column of labels."""
    if column.has_sets:
        return "several labels for each example"
    return "numbers" if column.are_amounts else f"{column.different} classes"
