"""How well each class is recognised, and what is taken for what, as summaries and `hellora evaluate` tell it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hellora.core.metrics import ClassScores
from hellora.model.own_heads import class_names

MOST = 50  # classes of a confusion matrix
DIGITS = 4  # of a score in a file
Confusion = Sequence[Sequence[int]]  # how many of each class (rows) are taken for each (columns)


def confusion_of(
    predictions: Sequence[int], references: Sequence[int], per_class: Mapping[int | str, ClassScores]
) -> Confusion:
    """Count how many examples of each class are taken for each, in the order of `per_class`; () of more than MOST."""
    if len(per_class) > MOST:
        return ()
    place = {label: i for i, label in enumerate(per_class)}
    counts = np.zeros((len(place), len(place)), dtype=np.int64)
    np.add.at(counts, ([place[label] for label in references], [place[label] for label in predictions]), 1)
    found: list[list[int]] = counts.tolist()
    return found


def by_name(per_class: Mapping[int | str, ClassScores], confusion: Confusion, labels: Sequence[str]) -> dict[str, Any]:
    """Return both of an evaluation as JSON values, the classes called by their names; {} where there are no classes.
    The head may have room for more than the `labels`."""
    if not per_class:
        return {}
    names = class_names(labels, 1 + max((label for label in per_class if isinstance(label, int)), default=-1))
    found = {
        label if isinstance(label, str) else names[label]: {
            "precision": round(scores.precision, DIGITS),
            "recall": round(scores.recall, DIGITS),
            "f1": round(scores.f1, DIGITS),
            "examples": scores.count,
        }
        for label, scores in per_class.items()
    }
    return {"per_class": found, **({"confusion": [list(row) for row in confusion]} if confusion else {})}
