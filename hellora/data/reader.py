"""Read splits into the columns that a task reads; rows that cannot be used are left out and noted."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets

from hellora.core.errors import InputError
from hellora.core.metrics import UNLABELLED
from hellora.data.cells import (
    Faults,
    cells_of,
    column_without_cells,
    images,
    is_unlabelled,
    label_cells,
    named,
    texts,
)
from hellora.data.forms import read_form
from hellora.data.label_sets import LABELS, label_sets, read_label_sets
from hellora.data.labels import in_order, oddities
from hellora.data.loading import Split
from hellora.data.numbers import NUMBERS, check_names, names_of, read_numbers
from hellora.data.preferences import asked_of, read_preferences
from hellora.data.settings import LANGUAGE, ONE_CLASS, TEXTS, Columns, DataSettings
from hellora.data.tags import classes_of, read_tokens
from hellora.data.usable import Tolerance, check_faults

TARGETS = ("text_numbers", "text_labels")  # columns of a task whose examples have numbers or labels, and no class
# What the two texts of a pair are called, in the data sets of GLUE and others.
PAIRS = {
    "sentence1": "sentence2",
    "question1": "question2",
    "question": "sentence",
    "premise": "hypothesis",
    "text": "text_pair",
    "text1": "text2",
}


@dataclass(frozen=True, eq=False)
class Reader:
    """A reader reads splits into canonical columns; the classes are those of the training split."""

    settings: DataSettings
    columns: Columns
    labels: tuple[str, ...]  # the names of the classes
    index_of: Mapping[str, int] | None  # of the classes that occur; None where there is no label
    declared: bool = False  # the classes are those that the source names, in its order
    notes: list[str] = field(default_factory=list)  # what a person should know of what was read

    @staticmethod
    def for_split(train: Split, settings: DataSettings, columns: Columns) -> "Reader":
        """Make the reader of a source, whose classes are those of its training split."""
        if columns == "tokens":
            tags, declared = classes_of(train, settings)
            return Reader(settings, columns, tags, {tag: index for index, tag in enumerate(tags)}, declared)
        if columns in LANGUAGE and settings.label not in train.data.column_names:
            return Reader(settings, columns, (), None)
        if columns in TEXTS:
            settings.check_columns_differ()
        if columns not in LANGUAGE and (column := unlabelled(train, settings, columns)):
            setting = "labels" if column in settings.labels else "label"
            cells_of(train, column, setting)
            raise InputError(
                f"data.{setting}: {train.where} is unlabelled, for its column '{column}' is -1 or empty in every row: "
                f"name another column or split"
            )
        if columns == "text_numbers":
            names = names_of(settings)
            return Reader(settings, columns, names, {name: index for index, name in enumerate(names)}, declared=True)
        if columns == "text_labels":
            sets = label_sets(train, settings)
            names = sets.declared or tuple(sets.present)
            index_of = {label: names.index(label) for label in sets.present}
            return Reader(settings, columns, names, index_of, bool(sets.declared))
        if columns in LANGUAGE and not have_labels(train, settings.label):
            return Reader(settings, columns, (), None)
        present = {label for label in label_cells(train, settings.label) if label is not None}
        feature = train.data.features[settings.label]
        declared = isinstance(feature, ClassLabel)
        labels = feature.names if declared else in_order(present)
        index_of = {label: index for index, label in enumerate(labels) if label in present}
        return Reader(settings, columns, tuple(labels), index_of, declared)

    def read(
        self,
        split: Split,
        keep: tuple[str, ...] = (),
        may_lack_labels: bool = False,
        prompts_alone: bool = False,
    ) -> Dataset:
        """Read the split into canonical columns, and keep the columns `keep` as they are.

        Rows that cannot be used are left out, and noted. A label that is absent or no class of the training split is
        UNLABELLED with `may_lack_labels`; else one that is no class is an error. With `prompts_alone`, answers of a
        language task are not read, nor the tags of words, nor numbers or labels.
        """
        settings, faults = self.settings, Faults()
        if self.columns == "tokens":
            known = self.index_of or {}
            cells, features = read_tokens(split, settings, faults, self.notes, known, may_lack_labels, prompts_alone)
        else:
            cells, features = self._said(split, faults, prompts_alone)
            told = without_targets(split, settings) if prompts_alone and self.columns in TARGETS else split
            self._add_targets(told, faults, may_lack_labels, cells, features)
        for column in keep:
            if column not in cells:
                cells[column], features[column] = cells_of(split, column, "column"), split.data.features[column]
            elif getattr(settings, column) != column:
                raise InputError(f"data.column: '{column}' is a name that hellora gives another column: rename yours")
        data = Dataset.from_dict(cells, features=features)
        if self.columns == "image":
            data = concatenate_datasets([images(split, settings.image, faults), data], axis=1)
            classes = cells.get("label", ())
            faults = {row: f"{why}{self._of_class(classes, row)}" for row, why in faults.items()}
        if note := check_faults(faults, split, Tolerance(settings.strict, settings.unusable)):
            self.notes.append(note)
        return data.select([row for row in range(len(data)) if row not in faults]) if faults else data

    def _said(self, split: Split, faults: Faults, prompts_alone: bool) -> tuple[dict[str, Sequence[Any]], Features]:
        """Read what examples say, in columns of texts or of conversations; images are decoded when they are read."""
        settings = self.settings
        if self.columns == "preference" and settings.chosen in split.data.column_names:
            return (asked_of if prompts_alone else read_preferences)(split, settings, faults, self.notes)
        if self.columns == "preference" and not prompts_alone:
            return read_preferences(split, settings, faults, self.notes)  # which says what is absent
        if self.columns in LANGUAGE:
            return read_form(split, settings, faults, self.notes, prompts_alone)
        names = ("text", "text_pair") if self.columns in TEXTS else ()
        named = {name: getattr(settings, name) for name in names if getattr(settings, name)}
        cells = {name: texts(cells_of(split, column, name), split, name, faults) for name, column in named.items()}
        return {**cells}, Features(dict.fromkeys(cells, Value("string")))

    def _add_targets(
        self, split: Split, faults: Faults, may_lack_labels: bool, cells: dict[str, Sequence[Any]], features: Features
    ) -> None:
        """Add the column of what examples are to what they say: their class, or numbers, or labels."""
        settings = self.settings
        if self.columns == "text_numbers":
            check_names(settings, self.labels)
            cells["targets"], features["targets"] = read_numbers(split, settings, faults, may_lack_labels), NUMBERS
        elif self.columns == "text_labels":
            names, notes = self.labels, self.notes
            cells["targets"] = read_label_sets(split, settings, names, faults, notes, may_lack_labels)
            features["targets"] = LABELS
        elif self.index_of is not None:
            free = may_lack_labels or self.columns in LANGUAGE  # there a label only says who gets a row
            labels = self._labels_if_any(split) if free else self._labels(split, faults)
            cells["label"], features["label"] = labels, Value("int64")

    def say_oddities(self, where: str, columns: Sequence[str] = ()) -> None:
        """Note what a person may have meant otherwise: of classes, and of a second text that is not read."""
        if self.columns in (*ONE_CLASS, "text_labels", "tokens") and (said := oddities(self.labels, where)):
            self.notes.append(said)
        beside = PAIRS.get(self.settings.text, "")
        if self.columns in TEXTS and not self.settings.text_pair and beside in columns:
            self.notes.append(
                f"not read: '{beside}' of {where}, beside '{self.settings.text}' (data.text_pair = '{beside}' "
                f"reads both)"
            )

    def check_vanished(self, train: Dataset) -> None:
        """Raise InputError where no row of a class of the training split can be used."""
        if self.columns == "text_labels" and not any(1 in row for row in train["targets"][:]):
            raise InputError(f"data.label: no example of {self.settings.name} has a label: name another column")
        if self.index_of is None or self.columns not in ONE_CLASS:
            return
        left = set(train["label"][:])
        if gone := [label for label, index in self.index_of.items() if index not in left]:
            raise InputError(
                f"data.name: of the class '{gone[0]}' of {self.settings.name} no row can be used: mend its rows, or "
                f"remove them"
            )

    def _of_class(self, labels: Sequence[Any], row: int) -> str:
        """Name the class of a row that cannot be used, by which such rows are counted; "" where it has none."""
        known = bool(labels) and labels[row] != UNLABELLED
        return f", class '{self.labels[labels[row]]}'" if known else ""

    def _labels(self, split: Split, faults: Faults) -> list[int]:
        """Read the classes; a row without a label is a fault, one with a label that is no class an error."""
        assert self.index_of is not None
        found = label_cells(split, self.settings.label)
        for row, value in enumerate(found):
            if value is None:
                faults.setdefault(row, "it has no label")
            elif value not in self.index_of:
                raise InputError(
                    f"data.label: {split.place(row)} has the label {value!r}, which no training example has: "
                    f"name a split with the same classes"
                )
        return [UNLABELLED if value is None else self.index_of[value] for value in found]

    def _labels_if_any(self, split: Split) -> list[int]:
        """Read the classes; a label that is absent, or none, is UNLABELLED."""
        assert self.index_of is not None
        if self.settings.label not in split.data.column_names:
            return [UNLABELLED] * len(split.data)
        found = named(split.data[self.settings.label][:], split.data.features[self.settings.label])
        return [self.index_of.get(value, UNLABELLED) if isinstance(value, str) else UNLABELLED for value in found]


def without_targets(split: Split, settings: DataSettings) -> Split:
    """Return a split as if nobody knew what its examples are: what is predicted may have anything in that column."""
    known = [name for name in settings.target_columns if name in split.data.column_names]
    return replace(split, data=split.data.remove_columns(known))


def unlabelled(split: Split, settings: DataSettings, columns: Columns, classes: Container[str] = ()) -> str | None:
    """Name the column of classes, or of what stands in their place, in which no row has one; None where there is none
    such."""
    if columns in TARGETS:
        return column_without_cells(split, settings.target_columns)
    return settings.label if is_unlabelled(split, settings.label, classes) else None


def have_labels(split: Split, column: str) -> bool:
    """Say whether every row has a text or a whole number as its label."""
    cells = split.data[column][:]
    return all(isinstance(cell, int | str) and cell != "" for cell in cells)
