"""Read sentences whose words have a tag each: where entities are (`tag_schemes`), or plain ones (parts of speech).

Words and tags are lists, or texts with white space between them. What is no such sentence is a fault of its row.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Features, Value

from hellora.core.errors import InputError
from hellora.core.metrics import UNLABELLED
from hellora.data.cells import Faults, cells_of
from hellora.data.labels import as_written, in_order
from hellora.data.loading import Split
from hellora.data.settings import DataSettings
from hellora.data.tag_schemes import OUTSIDE, TYPED, are_of_entities, in_another_notation, in_iob2, parted, scheme_of
from hellora.data.written_lists import is_broken, written_list, written_lists

TOKENS = ("tokens", "words")  # columns, by the names that people give them
TAGS = ("tags", "ner_tags", "labels", "pos_tags")
NO_TAG = ("-1", "-100")  # numbers that say that a word has none
SHOWN = 10  # types in a note
Words = list[str]


@dataclass(frozen=True)
class Tagged:
    """Sentences have words, and the tags of each in IOB2, or plain; of a row with a fault both are []."""

    words: Sequence[Words]
    tags: Sequence[Words]
    note: str  # on what was read


def classes_of(split: Split, settings: DataSettings) -> tuple[tuple[str, ...], bool]:
    """Return the classes that tags of a training split are of, and whether these are the ones that it declares, in its
    order. Of a type of entities, both B and I are classes, whether or not both occur."""
    names = declared(split, column_of(split, settings, "tags"))
    found = names or in_order({tag for tags in read_tagged(split, settings, {}).tags for tag in tags})
    if not are_of_entities(found):
        return tuple(found), bool(names)
    types = {part[1] for tag in found if (part := parted(tag))}
    wanted = {OUTSIDE, *("-".join(filter(None, (part, kind))) for part in "BI" for kind in types)}
    same = wanted == {*names}
    return tuple(names if same else in_order(wanted)), same


# ---------------------------------------------------------------------------------------------------- columns


def column_of(split: Split, settings: DataSettings, which: str) -> str:
    """Name the column of the tokens or the tags: as the settings say, or by its name.

    Raises:
        InputError: there is none.
    """
    known = (*TOKENS, settings.text) if which == "tokens" else TAGS
    named: str = getattr(settings, which)
    found = named or next((name for name in known if name in split.data.column_names), "")
    if found in split.data.column_names:
        return found
    has = ", ".join(split.data.column_names)
    what = f"column '{named}'" if named else f"column of {which} ({', '.join(known)})"
    raise InputError(f"data.{which}: {split.where} has no {what} (it has {has}): set data.{which}")


def has_tags(split: Split, settings: DataSettings) -> bool:
    """Say whether a split has a column of tags."""
    names = split.data.column_names
    return settings.tags in names if settings.tags else any(name in names for name in TAGS)


def declared(split: Split, column: str) -> list[str]:
    """Return the names of the tags that are numbers in a source which names them; [] where they are none."""
    feature = split.data.features[column]
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return list(inner.names) if isinstance(inner, ClassLabel) else []


def read_tagged(split: Split, settings: DataSettings, faults: Faults) -> Tagged:
    """Read words with their tags; rows that cannot be used become faults.

    Raises:
        InputError: a column is not there, is that of words and of tags, or has tags in a notation that is not read.
    """
    token_column, tag_column = column_of(split, settings, "tokens"), column_of(split, settings, "tags")
    if token_column == tag_column:
        raise InputError(f"data.tags: column '{tag_column}' is that of the words: name another one")
    names, words = declared(split, tag_column), words_of(split, token_column, settings, faults)
    tags = [[tag_of(tag, names) for tag in each] for each in items_of(split, tag_column, "tags", faults)]
    for row, (of_row, tags_of_row) in enumerate(zip(words, tags, strict=True)):
        if why := fault(of_row, tags_of_row):
            faults.setdefault(row, why)
    known = {tag for row, each in enumerate(tags) if row not in faults for tag in each}
    scheme = ""
    if are_of_entities(names or known):
        check_entities(tags, faults)
        scheme = scheme_of(each for row, each in enumerate(tags) if row not in faults)
        tags = [in_iob2(each) for each in tags]
    elif in_another_notation(names or known):
        raise InputError(
            f"data.tags: {split.where} has the tags {', '.join(sorted(known)[:SHOWN])}, which seem to be of entities: "
            f"write these as B-PER and I-PER, and what is outside as O"
        )
    words, tags = ([[] if row in faults else each for row, each in enumerate(of)] for of in (words, tags))
    return Tagged(words, tags, f"words ('{token_column}') with tags ('{tag_column}'): {described(scheme, known)}")


def check_entities(tags: Sequence[Words], faults: Faults) -> None:
    """Find rows with a tag that is of no entity, or of one without a type where others have types."""
    typed = any(TYPED.fullmatch(tag) for each in tags for tag in each)
    of_entity = TYPED.fullmatch if typed else parted
    for row, each in enumerate(tags):
        if odd := next((tag for tag in each if tag != OUTSIDE and not of_entity(tag)), ""):
            faults.setdefault(row, f"its tag '{odd}' is neither O nor of an entity, as B-PER is")


def described(scheme: str, tags: Collection[str]) -> str:
    """Say what tags are, for a person."""
    found = sorted({part[1] for tag in tags if (part := parted(tag)) and part[1]} if scheme else tags)
    shown = ", ".join(found[:SHOWN]) + (" …" if found[SHOWN:] else "")
    if not scheme:
        return f"plain ones ({shown})"
    read_as = "" if scheme == "IOB2" else ", read as IOB2"
    return f"{scheme}{read_as}, of entities ({shown})" if shown else f"{scheme}{read_as}"


def words_of(split: Split, column: str, settings: DataSettings, faults: Faults) -> list[Words]:
    """Return the words of each row: a list, or a text with white space between them."""
    text = column == settings.text and column not in (settings.tokens, *TOKENS)
    found = items_of(split, column, "tokens", faults, may_be_lists=not text)
    return [[as_written(word) if isinstance(word, str | int) else "" for word in words] for words in found]


def items_of(split: Split, column: str, which: str, faults: Faults, may_be_lists: bool = True) -> list[list[Any]]:
    """Return the words or the tags of each row: of a list, of a list that is written out, as in CSV, or of a text by
    white space. What begins like a list and is none, or holds anything but texts and numbers, is a fault."""
    cells = cells_of(split, column, which)
    lists = written_lists(cells) if may_be_lists else None
    found = []
    for row, cell in enumerate(cells):
        items = listed(cell, may_be_lists)
        no_list = isinstance(cell, str) and (lists is None or lists[row] is None)
        if no_list and is_broken(cell) and (lists or which == "tags"):
            faults.setdefault(row, f"its {which} begin with a bracket, and are no list")
        if other := next((type(each) for each in items if not isinstance(each, str | int | None)), None):
            faults.setdefault(row, f"it has a {other.__name__} among its {which}, not a text or a whole number")
        found.append(items)
    return found


def listed(cell: Any, may_be_list: bool = True) -> list[Any]:
    """Return the items of a cell: of a list, of a list that is written out, or of a text by white space."""
    if isinstance(cell, str):
        written = written_list(cell) if may_be_list else None
        return cell.split() if written is None else written
    return list(cell) if isinstance(cell, list | tuple) else []


def tag_of(tag: Any, names: Sequence[str]) -> str:
    """Return a tag as a text; "" where there is none."""
    if names and isinstance(tag, int):
        return names[tag] if 0 <= tag < len(names) else ""
    written = as_written(tag).strip() if isinstance(tag, str | int) else ""
    return "" if written in NO_TAG else written


def fault(words: Words, tags: Words) -> str:
    """Say why words and tags are no sentence; "" where they are one."""
    if not words:
        return "it has no words"
    if empty := next((place for place, word in enumerate(words, 1) if not word.strip()), 0):
        return f"its word {empty} is empty"
    if len(words) != len(tags):
        return f"it has {len(words)} words and {len(tags)} tags"
    if untagged := next((place for place, tag in enumerate(tags, 1) if not tag), 0):
        return f"its word {untagged} ('{words[untagged - 1]}') has no tag"
    return ""


# ---------------------------------------------------------------------------------------------------- canonical columns


def read_tokens(
    split: Split,
    settings: DataSettings,
    faults: Faults,
    notes: list[str],
    index_of: Mapping[str, int],
    may_lack_labels: bool = False,
    tokens_alone: bool = False,
) -> tuple[dict[str, Sequence[Any]], Features]:
    """Read a split into `tokens` and `tags`, the index of each word's class; rows that cannot be used become faults.

    Args:
        index_of: the classes
        may_lack_labels: a tag that is none of them is UNLABELLED; tags need not be there, and are then left out
        tokens_alone: for predictions; tags are not read
    """
    features = Features({"tokens": [Value("string")]})
    if tokens_alone or (may_lack_labels and not has_tags(split, settings)):
        words = words_of(split, column_of(split, settings, "tokens"), settings, faults)
        for row, of_row in enumerate(words):
            if why := fault(of_row, ["-"] * len(of_row)):
                faults.setdefault(row, why)
        return {"tokens": words}, features
    found = read_tagged(split, settings, faults)
    notes.append(f"{split.where} holds {found.note}")
    if not may_lack_labels:
        for row, tags in enumerate(found.tags):
            if odd := next((tag for tag in tags if tag not in index_of), ""):
                faults.setdefault(row, f"it has the tag '{odd}', which no training example has")
    indices = [[index_of.get(tag, UNLABELLED) for tag in of_row] for of_row in found.tags]
    return {"tokens": found.words, "tags": indices}, Features({**features, "tags": [Value("int64")]})
