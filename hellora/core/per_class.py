"""How well each class is recognised, and what is taken for what, in counts.

Counts of several models, or of several parts of the data, add up: their scores are those of all together.

    precision = right / said,    recall = right / examples,    F1 = 2 right / (said + examples)    0 where nothing is
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Label = int | str  # the index of a class or, where it has none, its name, such as that of a kind of entity
Pair = tuple[Label, Label]  # what an example is, and what it is said to be

MOST = 50  # classes of a confusion matrix, and of a line of rounds.jsonl
MOST_PAIRS = 50  # confused pairs of a summary that has no matrix
DIGITS = 4  # of a score in a file


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """Counts how one class, or one kind of entity, is recognised."""

    examples: int = 0  # that are of it
    said: int = 0  # that are said to be of it
    right: int = 0  # that are both

    def __add__(self, other: "ClassCounts") -> "ClassCounts":
        return ClassCounts(self.examples + other.examples, self.said + other.said, self.right + other.right)

    @property
    def precision(self) -> float:
        return self.right / self.said if self.said else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.examples if self.examples else 0.0

    @property
    def f1(self) -> float:
        return 2 * self.right / (self.examples + self.said) if self.right else 0.0


@dataclass(frozen=True)
class PerClass:
    """Says how well each class is recognised that occurs or is said; nothing where there are no classes.

    `taken` counts how many examples of which class are said to be of which, those that are right included. It is empty
    where an example may be of several classes.
    """

    counts: Mapping[Label, ClassCounts] = field(default_factory=dict)  # in the order of the labels
    taken: Mapping[Pair, int] = field(default_factory=dict)

    @staticmethod
    def of(references: Sequence[Label], predictions: Sequence[Label]) -> "PerClass":
        """Count examples of one class each: what each is, and what it is said to be."""
        labels, places = np.unique(np.array([*references, *predictions]), return_inverse=True)
        true, said = np.split(places.ravel(), 2)
        codes, counts = np.unique(true * len(labels) + said, return_counts=True)
        names: list[Label] = labels.tolist()
        pairs = zip((codes // len(labels)).tolist(), (codes % len(labels)).tolist(), counts.tolist(), strict=True)
        return PerClass.of_taken({(names[is_], names[as_]): count for is_, as_, count in pairs})

    @staticmethod
    def of_taken(taken: Mapping[Pair, int]) -> "PerClass":
        """Make it of what is taken for what."""
        examples, said = Counter[Label](), Counter[Label]()
        for (label, other), count in taken.items():
            examples[label] += count
            said[other] += count
        right = {label: taken.get((label, label), 0) for label in examples | said}
        return PerClass(
            {label: ClassCounts(examples[label], said[label], right[label]) for label in in_order(right)}, taken
        )

    @staticmethod
    def sum(parts: Iterable["PerClass"]) -> "PerClass":
        """Add up what several models, or one on several parts of the data, make of their examples."""
        counts: dict[Label, ClassCounts] = {}
        taken = Counter[Pair]()
        for part in parts:
            taken.update(part.taken)
            for label, own in part.counts.items():
                counts[label] = counts.get(label, ClassCounts()) + own
        return PerClass({label: counts[label] for label in in_order(counts)}, dict(taken))

    @property
    def recall(self) -> dict[int, float]:
        """Return the part of each class that is recognised, by its index, of those that occur; {} where an example may
        be of several classes."""
        found = self.counts.items() if self.taken else ()
        return {label: own.recall for label, own in found if isinstance(label, int) and own.examples}

    def scores(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return precision, recall, F1 and the number of examples of each class by its name, as JSON values; `names`
        are those of the indices."""
        return {
            named(label, names): {
                "precision": round(own.precision, DIGITS),
                "recall": round(own.recall, DIGITS),
                "f1": round(own.f1, DIGITS),
                "examples": own.examples,
            }
            for label, own in self.counts.items()
        }

    def confusion(self, names: Sequence[str]) -> dict[str, Any]:
        """Return what is taken for what as JSON values by key: the `confusion` matrix of up to MOST classes, and of
        more the pairs that are `most_confused`. {} where an example may be of several classes."""
        if not self.taken:
            return {}
        labels = list(self.counts)
        shown = [named(label, names) for label in labels]
        if len(labels) <= MOST:
            counts = [[self.taken.get((label, other), 0) for other in labels] for label in labels]
            return {"confusion": {"labels": shown, "counts": counts}}
        called = dict(zip(labels, shown, strict=True))
        pairs = [(called[is_], called[as_], n) for (is_, as_), n in self.taken.items() if is_ != as_]
        return {"most_confused": [list(pair) for pair in sorted(pairs, key=most_first)[:MOST_PAIRS]]}


def in_order(labels: Iterable[Label]) -> list[Label]:
    """Sort labels, which are all indices or all names."""
    return sorted(labels)


def named(label: Label, names: Sequence[str]) -> str:
    return label if isinstance(label, str) else names[label]


def most_first(pair: tuple[str, str, int]) -> tuple[int, str, str]:
    """Return what sorts confused pairs: the most frequent first, equal ones by name."""
    return -pair[2], pair[0], pair[1]


def confused_pairs(found: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """List what is taken for what of a summary, the most frequent first: (class, taken for, examples) each.

    Args:
        found: JSON values as `PerClass.confusion` returns them, among others
    """
    if "most_confused" in found:
        return [(label, other, count) for label, other, count in found["most_confused"]]
    matrix = found.get("confusion", {"labels": [], "counts": []})
    names = matrix["labels"]
    pairs = [
        (name, other, count)
        for name, row in zip(names, matrix["counts"], strict=True)
        for other, count in zip(names, row, strict=True)
        if count and name != other
    ]
    return sorted(pairs, key=most_first)
