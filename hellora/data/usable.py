"""Rows that cannot be used are left out, counted by reason and named; too many of them stop the run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hellora.core.errors import InputError
from hellora.data.loading import Split

SHOWN = 3  # places of one reason
PARTICULAR = re.compile(r"\d+|'(?:[^'\\\\]|\\\\.)*'…?|\"[^\"]*\"…?")  # of one row alone


@dataclass(frozen=True)
class Tolerance:
    """A tolerance says what share of rows may be unusable; `strict`: none."""

    strict: bool = False
    share: float = 0.05


def check_faults(faults: Mapping[int, str], split: Split, tolerance: Tolerance) -> str:
    """Return a note on the rows of a split with a fault; "" where there is none.

    Args:
        faults: the reason, by row

    Raises:
        InputError: one row is too many, or these are.
    """
    if not faults:
        return ""
    count, rows = len(faults), len(split.data)
    first = min(faults)
    if tolerance.strict:
        raise InputError(f"data.name: {split.place(first)}: {faults[first]}: mend the data, or name another column")
    if count > tolerance.share * rows:
        raise InputError(
            f"data.unusable: {count} of the {rows} rows of {split.where} cannot be used, more than "
            f"{tolerance.share:.0%} ({by_reason(faults, split)}): mend the data, name another column, or raise "
            f"data.unusable"
        )
    return f"left out: {count} of the {rows} rows of {split.where} ({by_reason(faults, split)})"


def by_reason(faults: Mapping[int, str], split: Split) -> str:
    """Count faults by their reason, of which numbers and what is quoted are no part; give one and a few places."""
    rows: dict[str, list[int]] = {}
    for row, why in sorted(faults.items()):
        rows.setdefault(PARTICULAR.sub("_", why), []).append(row)
    return "; ".join(
        f"{len(found)}: {faults[found[0]]}, {', '.join(map(split.place, found[:SHOWN]))}{' …' if found[SHOWN:] else ''}"
        for found in rows.values()
    )
