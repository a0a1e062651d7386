"""A label is a text, as its file has it written: `01` is not `1`, and what JSON calls `true` is "true"."""

import re
from collections.abc import Iterable

UNLABELLED = -100  # the label of a public example without one, or with one that is no class of the clients'
WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")


def as_written(cell: object) -> str:
    """Write a text, a whole number or a truth value as a file has it."""
    return str(cell).lower() if isinstance(cell, bool) else str(cell)


def in_order(labels: Iterable[str]) -> list[str]:
    """Sort labels by their size, where all are whole numbers; else as texts."""
    found = list(labels)
    return sorted(found, key=int) if all(map(WHOLE_NUMBER.fullmatch, found)) else sorted(found)
