"""How well each class is recognised, by the names of the classes, as runs' files and `hellora evaluate` tell it."""

from collections.abc import Sequence
from typing import Any

from hellora.core.per_class import MOST, PerClass
from hellora.model.own_heads import class_names


def by_name(per_class: PerClass, labels: Sequence[str]) -> dict[str, Any]:
    """Return the scores and, where an example has one class, what is taken for what, as JSON values by key; {} where
    there are no classes. The head may have room for more than the `labels`."""
    names = names_of(per_class, labels)
    return {"per_class": per_class.scores(names), **per_class.confusion(names)} if per_class.counts else {}


def scores_of_round(per_class: PerClass, labels: Sequence[str]) -> dict[str, dict[str, float]] | None:
    """Return the scores by name that a line of rounds.jsonl has: those of up to MOST classes, None of more and of
    none."""
    few = 0 < len(per_class.counts) <= MOST
    return per_class.scores(names_of(per_class, labels)) if few else None


def names_of(per_class: PerClass, labels: Sequence[str]) -> Sequence[str]:
    """Name the classes of all indices."""
    return class_names(labels, 1 + max((label for label in per_class.counts if isinstance(label, int)), default=-1))
