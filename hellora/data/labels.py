"""A label is a text, as its file has it written: `01` is not `1`, and what JSON calls `true` is "true"."""

import re
from collections.abc import Iterable, Sequence

WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")


def as_written(cell: object) -> str:
    """Write a text, a whole number or a truth value as a file has it."""
    return str(cell).lower() if isinstance(cell, bool) else str(cell)


def in_order(labels: Iterable[str]) -> list[str]:
    """Sort labels by their size, where all are whole numbers; else as texts."""
    found = list(labels)
    return sorted(found, key=int) if all(map(WHOLE_NUMBER.fullmatch, found)) else sorted(found)


def oddities(labels: Sequence[str]) -> str:
    """Say what of classes a person may have meant otherwise: those that differ in case or spaces only, and numbers that
    stand for names; "" where that is nothing."""
    first: dict[str, str] = {}
    for label in labels:
        twin = first.setdefault("".join(label.split()).casefold(), label)
        if twin != label:
            return f"{twin!r} and {label!r} among others, which differ in case or spaces only: {', '.join(labels[:10])}"
    if labels and all(map(WHOLE_NUMBER.fullmatch, labels)):
        return (
            f"numbers without names: {', '.join(labels[:10])}{' …' * (len(labels) > 10)} (write names in their place "
            f"to have some)"
        )
    return ""
