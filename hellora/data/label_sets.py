"""Read the labels of examples that may have several of them, or none, in the forms that people have them.

    lists      a column of lists of labels, which CSV has written out (`written_lists`)
    texts      a column of texts such as "sport, local", which `data.separator` splits; without one each text is a label
    one-hot    a column for each label (`data.labels`) that says 0 or 1, false or true

An empty list or text is an example without labels. One that is missing is that of a row that cannot be used.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Value

from hellora.core.errors import InputError
from hellora.core.metrics import UNLABELLED
from hellora.data.cells import Faults, cells_of, named
from hellora.data.labels import in_order
from hellora.data.loading import Split
from hellora.data.settings import DataSettings
from hellora.data.written_lists import written_lists

LABELS = [Value("int8")]  # in the column `targets`
SEPARATORS = (",", ";", "|")
NEVER_INSIDE = (";", "|")  # of a label, where labels are separated by one of SEPARATORS: most likely a second one
BETWEEN = (*SEPARATORS, "\t", "\n")  # what is between labels where each part is a label by itself, too
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
    cells = named(cells_of(split, column, "label"), split.data.features[column])
    written = written_lists(cells)
    if written is None and not any(isinstance(cell, list) for cell in cells):
        return of_texts(cells, split, settings)
    if settings.separator:
        raise InputError(f"data.separator: the labels of {split.where} ('{column}') are lists: remove it")
    return of_lists(cells if written is None else lists_of(cells, written), split, column)


def lists_of(cells: Sequence[Any], written: Sequence[list[Any] | None]) -> list[Any]:
    """Return the lists that are written out; [] of an empty cell, and of what is no list its text."""
    return [
        cell if own is None and (cell is None or cell.strip()) else own or []
        for cell, own in zip(cells, written, strict=True)
    ]


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
    check_no_vectors(cells, split, column)
    rows: list[list[str] | None] = []
    why: Faults = {}
    for row, cell in enumerate(cells):
        labels = named(list(cell), inside) if isinstance(cell, list) else []
        other = next((label for label in labels if not isinstance(label, str | None)), None)
        if cell is None or cell == "null":
            why[row] = f"its '{column}' is missing (an empty list has no labels)"
        elif not isinstance(cell, list):
            why[row] = f"its '{column}' is '{cell[:80]}', and no list as others are"
        elif other is not None:
            why[row] = f"its '{column}' has a {type(other).__name__} among its labels, not a text or a whole number"
        elif not all(label and label.strip() for label in labels):
            why[row] = f"its '{column}' has an empty label"
        rows.append(None if row in why else labels)
    return LabelSets(rows, why, "lists", tuple(inside.names) if isinstance(inside, ClassLabel) else ())


def check_no_vectors(cells: Sequence[Any], split: Split, column: str) -> None:
    """Raise InputError where lists are 0 and 1 for each label in turn, and not labels."""
    lists = [[str(each).lower() for each in cell] for cell in cells if isinstance(cell, list)]
    alike = len({len(each) for each in lists}) == 1 and all(each in ONE_HOT for one in lists for each in one)
    if alike and any(len({*each}) < len(each) for each in lists):
        raise InputError(
            f"data.label: the lists of {split.where} ('{column}') are 0 and 1 for each label in turn: write the names "
            f"of labels instead, or give each label a column (data.labels)"
        )


def of_texts(cells: Sequence[Any], split: Split, settings: DataSettings) -> LabelSets:
    """Read texts of labels, which the separator of the settings splits."""
    column, mark = settings.label, settings.separator.strip() or settings.separator
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
            raise InputError(asked_for(inside, text, split.place(row)))
        other = next((each for each in NEVER_INSIDE if each in text and each != mark), None)
        if cell is None:
            why[row] = f"its '{column}' is missing (an empty text has no labels)"
        elif other is not None and mark in SEPARATORS:
            why[row] = f"its '{column}' is '{text[:80]}', with {other} beside the separator {mark}"
        parts = text.split(mark) if mark else [text]
        rows.append(None if row in why else [part.strip() for part in parts if part.strip()])
    form = f"texts, separated by {mark!r}" if mark else "texts of one label each"
    return without_joined(LabelSets(rows, why, form), split, settings)


def without_joined(sets: LabelSets, split: Split, settings: DataSettings) -> LabelSets:
    """Find rows with several labels in one: between them is something else than the separator."""
    labels = {*sets.present}
    marks = BETWEEN if settings.separator else (*BETWEEN, "/")  # to name a separator keeps labels with a slash
    joined = {label: mark for label in labels if (mark := joined_by(label, labels, marks))}
    rows, why = [*sets.rows], {**sets.why}
    for row, of_row in enumerate(sets.rows):
        found = next((label for label in of_row or () if label in joined), None)
        if found is not None and not settings.separator:
            raise InputError(asked_for(joined[found], found, split.place(row)))
        if found is not None:
            why[row] = f"its '{settings.label}' has '{found[:80]}', labels with {joined[found]!r} between them"
            rows[row] = None
    return LabelSets(rows, why, sets.form)


def joined_by(label: str, labels: Collection[str], marks: Sequence[str]) -> str:
    """Return the mark between the parts of a label that are all labels by themselves; "" where there is none."""
    found = (mark for mark in marks if mark in label and all(part.strip() in labels for part in label.split(mark)))
    return next(found, "")


def asked_for(mark: str, labels: str, place: str) -> str:
    """Ask for the separator of labels."""
    written = json.dumps(mark) if mark.isspace() else repr(mark)  # as TOML has it
    return (
        f"data.separator: {place} has the labels {labels[:80]!r}: set data.separator = {written} or, where that is one "
        f"label, to what separates them"
    )
