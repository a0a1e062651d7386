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


def oddities(labels: Sequence[str], where: str) -> str:
    """Say what of the classes of a source a person may have meant otherwise: two that differ in case or spaces only,
    or numbers that stand for names; "" where that is nothing."""
    first: dict[str, str] = {}
    for label in labels:
        twin = first.setdefault("".join(label.split()).casefold(), label)
        if twin != label:
            return f"of the classes of {where}, {twin!r} and {label!r} differ in case or spaces only"
    if not labels or not all(map(WHOLE_NUMBER.fullmatch, labels)):
        return ""
    shown = ", ".join(labels[:10]) + " …" * (len(labels) > 10)
    return f"the classes of {where} are numbers ({shown}): write names in that column if they have some"
