"""Find the task that data and model are for, where nobody names one: by the names of columns, and what is in them.

    images                                    image_classification
    chosen and rejected                       preference
    conversations, prompts with responses     causal_lm, or seq2seq of a model that encodes and decodes
    tokens and tags                           token_classification
    a text with a label                       sequence_classification; of several multi_label, of fractions regression

What can be more than one of these, or none, is left to the usual task, or that of the preset.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hellora.core.errors import InputError
from hellora.experiments import registry
from hellora.experiments.sections import SECTIONS, defaults_of
from hellora.experiments.tables import Table, build

LOOKED_AT = 20  # rows, to tell whether words have tags


@dataclass(frozen=True)
class FoundTask:
    """A task was found, and why."""

    name: str
    reason: str

    @property
    def why(self) -> str:
        """Say which task it is and why, for a person."""
        return f"{self.name}, for {self.reason} (task.name says otherwise)"

    def takes(self, task: Any) -> bool:
        """Tell whether all settings of a [task] table are this task's."""
        return isinstance(task, Mapping) and task.keys() <= {
            *defaults_of(SECTIONS["task"]),
            *registry.settings_of("task", self.name),
        }


def found_task(table: Table, rows: Any = None) -> FoundTask | None:
    """Find the task of an experiment's table, which is not checked yet; None where it is not clear. `rows` are those of
    the training split, where they are here already."""
    given = [table.get(part, {}) for part in ("data", "model")]
    if not all(isinstance(part, dict) for part in given):  # which is said when all settings are checked
        return None
    settings, model = (
        {**defaults_of(SECTIONS[name]), **part} for name, part in zip(("data", "model"), given, strict=True)
    )
    known = registry.names("task")
    return next((found for found in fitting(settings, str(model["name"]), rows) if found.name in known), None)


def fitting(data: Table, model: str, rows: Any) -> Iterator[FoundTask]:
    """Yield what data, or else the model, are for."""
    from hellora.data.first_look import first_look
    from hellora.data.settings import DataSettings
    from hellora.model.family import family_of

    own = {key: value for key, value in data.items() if key in defaults_of(SECTIONS["data"]) and value is not None}
    try:
        settings, family = build(DataSettings, own, "data"), family_of(model)
    except InputError:  # which is said when all settings are checked
        return
    rows = first_look(settings) if rows is None else rows
    if rows is not None:
        yield from by_columns(rows, settings, family)
    elif family == "images":
        yield FoundTask("image_classification", f"{model} is a model of images")


def by_columns(rows: Any, data: Any, family: str) -> Iterator[FoundTask]:
    """Yield what the columns of a `datasets.Dataset` are for, as the [data] table names them."""
    from hellora.data.forms import CONVERSATIONS, PAIRS
    from hellora.data.tags import TAGS, TOKENS

    names = set(rows.column_names)
    texts = {data.text, *data.target_columns} <= names
    pairs = data.prompt or data.response or any({prompt, response} <= names for prompt, response, _ in PAIRS)
    known = (data.tokens, *TOKENS), (data.tags, *TAGS)
    words, tags = (next((name for name in each if name in names), "") for each in known)
    if data.image in names and data.text not in names:
        yield FoundTask("image_classification", f"{data.name} has images")
    elif {data.chosen, data.rejected} <= names:
        yield FoundTask("preference", f"{data.name} has answers of which one is preferred")
    elif data.messages or names & {*CONVERSATIONS}:
        yield from of_language(f"{data.name} has conversations", family)
    elif words and tags and are_tagged(rows[words][:LOOKED_AT], rows[tags][:LOOKED_AT]):
        yield FoundTask("token_classification", f"{data.name} has tokens ('{words}') with tags ('{tags}')")
    elif texts and family != "decoder":
        yield labelled([rows[column][:] for column in data.target_columns], data)
    elif pairs and not texts:
        yield from of_language(f"{data.name} has prompts with responses", family)
    elif data.text in names and not texts and family == "decoder":
        yield FoundTask("causal_lm", f"{data.name} has plain texts ('{data.text}')")


def of_language(what: str, family: str) -> Iterator[FoundTask]:
    """Yield the task of learning answers, where the model can: nothing can be said with an encoder."""
    if family == "encoder-decoder":
        yield FoundTask("seq2seq", f"{what}, and the model encodes and decodes")
    elif family in ("decoder", ""):
        yield FoundTask("causal_lm", what)


def labelled(columns: Sequence[Sequence[Any]], data: Any) -> FoundTask:
    """Return the task of texts with these labels, in one column or in several."""
    from hellora.data.numbers import are_amounts

    texts, named = f"{data.name} has texts ('{data.text}') with", ", ".join(map(repr, data.target_columns))
    told = [[label for label in cells if label not in (None, "")] for cells in columns]
    if data.separator or items_of(told[0][:1]):
        what = f"labels between {data.separator!r}" if data.separator else "lists of labels"
        return FoundTask("multi_label", f"{texts} {what} ({named})")
    if all(map(are_amounts, told)):
        return FoundTask("regression", f"{texts} many numbers with fractions ({named})")
    if len(told) > 1:
        return FoundTask("multi_label", f"{texts} a column for each label ({named})")
    return FoundTask("sequence_classification", f"{texts} a class each ({named})")


def items_of(cells: Sequence[Any]) -> list[list[Any]]:
    """Return the cells that are lists, or have one written out."""
    from hellora.data.written_lists import written_list

    lists = [written_list(cell) if isinstance(cell, str) else cell for cell in cells]
    return [each for each in lists if isinstance(each, list)]


def are_tagged(words: Sequence[Any], tags: Sequence[Any]) -> bool:
    """Tell whether cells are lists, or texts with as many tags as words in each, which are not always one."""
    if len(items_of(words)) == len(items_of(tags)) == len(words):
        return True
    if not all(isinstance(cell, str) for cell in (*words, *tags)):
        return False
    counts = [(len(one.split()), len(other.split())) for one, other in zip(words, tags, strict=True)]
    return all(one == other for one, other in counts) and any(one > 1 for one, _ in counts)
