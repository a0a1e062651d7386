"""A sweep asks how a result holds up as one setting changes: every value is a setting to compare in, in their order.

[sweep]
"fleet.availability" = [1.0, 0.9, 0.7]      dropouts: the settings availability-1.0, availability-0.9, availability-0.7
"data.alpha" = [10.0, 0.3, 0.1]             skew; each key is swept for itself, the others are as in the base
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hellora.core.errors import InputError

Sweep = Mapping[str, Sequence[Any]]  # the values of "section.key"


def swept_settings(sweep: Sweep) -> dict[str, dict[str, dict[str, Any]]]:
    """Make the settings of each swept key, by name: {"data.alpha": {"alpha-0.1": {"data.alpha": 0.1}}}.

    Raises:
        InputError: a key has no list of values, or one of them twice.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for key, values in sweep.items():
        if not isinstance(values, list | tuple) or not values:
            raise InputError(f"sweep: {key} must be a list of values, such as [0.1, 0.3], not {values!r}")
        found[key] = {f"{short_name(key, sweep)}-{in_name(value)}": {key: value} for value in values}
        if len(found[key]) < len(values):
            raise InputError(f"sweep: {key} has a value twice in {list(values)}: leave one out")
    return found


def short_name(key: str, sweep: Sweep) -> str:
    """Return the last part of a key, or the whole where another one ends alike."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in sweep) == 1 else key


def in_name(value: Any) -> str:
    """Write a value so that it can be part of a folder's name."""
    parts = value if isinstance(value, list | tuple) else [value]
    return "-".join(re.sub(r"[^\w.+-]+", "_", str(part)) for part in parts)
