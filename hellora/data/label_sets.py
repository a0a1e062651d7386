"""Read the labels of examples that may have several of them, or none, in the forms that people have them.

    lists      a column of lists of labels; in CSV each is written as JSON has it
    texts      a column of texts such as "sport, local", which `data.separator` splits; without one each text is a label
    one-hot    a column for each label (`data.labels`) that says 0 or 1, false or true

An empty list or text is an example without labels. One that is missing is that of a row that cannot be used.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Value

from hellora.core.errors import InputError
from hellora.data.cells import Faults, cells_of, named
from hellora.data.labels import UNLABELLED, as_written, in_order
from hellora.data.loading import Split
from hellora.data.settings import DataSettings

LABELS = [Value("int8")]  # in the column `targets`
SEPARATORS = (",", ";", "|")
NEVER_INSIDE = (";", "|")  # of a label, where labels are separated by one of SEPARATORS: most likely a second one
ONE_HOT = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


@dataclass(frozen=True)
class LabelSets:
    """Label sets are those of each row, None for one that cannot be used; `form` says how they are written."""

    rows: Sequence[Sequence[str] | None]
    why: Faults
    form: str
    declared: tuple[str, ...] = ()  # all labels, where the source or the settings name them

    @property
    def present(self) -> list[str]:
        """Return the labels that occur, in order."""
        return in_order({label for row in self.rows for label in row or ()})


def read_label_sets(
    split: Split,
    settings: DataSettings,
    names: Sequence[str],
    faults: Faults,
    notes: list[str],
    may_lack_labels: bool,
) -> list[list[int]]:
    """Read for each row which of the labels `names` it has: 1 or 0 of each. A row that cannot be used is a fault.

    With `may_lack_labels`, such a row, or one with a label that is none of these, is UNLABELLED.
    """
    unlabelled = [UNLABELLED] * len(names)
    if may_lack_labels and any(column not in split.data.column_names for column in settings.target_columns):
        return [unlabelled] * len(split.data)
    sets = label_sets(split, settings)
    found = []
    for row, labels in enumerate(sets.rows):
        unknown = next((label for label in labels or () if label not in names), None)
        if labels is None and not may_lack_labels:
            faults.setdefault(row, sets.why[row])
        if unknown is not None and not may_lack_labels:
            raise InputError(
                f"data.label: {split.place(row)} has the label {unknown!r}, which no training example has: name a "
                f"split with the same labels"
            )
        found.append(unlabelled if labels is None or unknown is not None else [int(each in labels) for each in names])
    none = sum(not any(row) for row in found)
    notes.append(f"{split.where} has labels as {sets.form}" + (f"; {none} of its rows have none" if none else ""))
    return found


# ------------------------------------------------------------------------------------------------------ their forms


def label_sets(split: Split, settings: DataSettings) -> LabelSets:
    """Find in which form the labels of a split are, and read them.

    Raises:
        InputError: a column is not there, holds something else, or texts that have to be separated.
    """
    if settings.labels:
        return of_columns(split, settings.labels)
    column = settings.label
    cells = cells_of(split, column, "label")
    given = [cell for cell in cells if cell is not None]
    if all(isinstance(cell, list) for cell in given):
        if settings.separator:
            raise InputError(f"data.separator: the labels of {split.where} ('{column}') are lists: remove it")
        return of_lists(cells, split, column)
    if not settings.separator and (lists := written_lists(cells)) is not None:
        return of_lists(lists, split, column)
    return of_texts(named(cells, split.data.features[column]), split, settings)


def of_columns(split: Split, labels: tuple[str, ...]) -> LabelSets:
    """Read a column for each label."""
    rows: list[list[str] | None] = [[] for _ in range(len(split.data))]
    why: Faults = {}
    for label in labels:
        cells = named(cells_of(split, label, "labels"), split.data.features[label])
        for row, cell in enumerate(cells):
            has = ONE_HOT.get(str(cell).strip().lower())
            if has is None:
                empty = cell is None or not str(cell).strip()
                why.setdefault(row, f"its '{label}' is " + ("empty" if empty else f"'{cell}', and neither 0 nor 1"))
            elif has and (labels_of_row := rows[row]) is not None:
                labels_of_row.append(label)
    return LabelSets([None if row in why else labels for row, labels in enumerate(rows)], why, "columns", labels)


def of_lists(cells: Sequence[Any], split: Split, column: str) -> LabelSets:
    """Read lists of labels; of a ClassLabel, lists of their numbers."""
    feature = split.data.features[column]
    inside = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    rows: list[list[str] | None] = []
    why: Faults = {}
    for row, cell in enumerate(cells):
        labels = named(list(cell or ()), inside)
        if other := [label for label in labels if label is not None and not isinstance(label, str)]:
            raise InputError(
                f"data.label: {split.place(row)} has {other[0]!r} among its labels, not a text or a whole number: "
                f"mend the data or name another column"
            )
        if cell is None:
            why[row] = f"its '{column}' is missing (an empty list has no labels)"
        elif not all(label and label.strip() for label in labels):
            why[row] = f"its '{column}' has an empty label"
        rows.append(None if row in why else labels)
    return LabelSets(rows, why, "lists", tuple(inside.names) if isinstance(inside, ClassLabel) else ())


def written_lists(cells: Sequence[Any]) -> list[Any] | None:
    """Return lists that CSV has as JSON; None where no cell is one, or some text is none."""
    found: list[Any] = []
    lists = 0
    for cell in cells:
        value = [] if isinstance(cell, str) and not cell.strip() else cell
        if isinstance(value, str):
            with suppress(ValueError):
                value = json.loads(value, parse_int=str, parse_float=str)
            lists += isinstance(value, list)
        if value is not None and not isinstance(value, list):
            return None
        found.append(None if value is None else [as_written(each) if each is not None else "" for each in value])
    return found if lists else None


def of_texts(cells: Sequence[Any], split: Split, settings: DataSettings) -> LabelSets:
    """Read texts of labels, which the separator of the settings splits."""
    column, mark = settings.label, settings.separator
    rows: list[list[str] | None] = []
    why: Faults = {}
    for row, cell in enumerate(cells):
        if cell is not None and not isinstance(cell, str):
            raise InputError(
                f"data.label: {split.place(row)} has the labels {cell!r}, not a text or a list: mend the data or name "
                f"another column"
            )
        text = cell or ""
        if not mark and (inside := next((other for other in SEPARATORS if other in text), None)):
            raise InputError(
                f"data.separator: {split.place(row)} has the labels {text[:80]!r}: set data.separator = {inside!r} or, "
                f"where that is one label, to what separates them"
            )
        other = next((each for each in NEVER_INSIDE if each in text and each != mark), None)
        if cell is None:
            why[row] = f"its '{column}' is missing (an empty text has no labels)"
        elif other is not None and mark in SEPARATORS:
            why[row] = f"its '{column}' is '{text[:80]}', with {other} beside the separator {mark}"
        parts = text.split(mark) if mark else [text]
        rows.append(None if row in why else [part.strip() for part in parts if part.strip()])
    return LabelSets(rows, why, f"texts, separated by {mark!r}" if mark else "texts of one label each")
