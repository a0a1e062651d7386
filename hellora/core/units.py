"""Read sizes, and shares of a model's layers, as people write them, and write sizes for people."""

import re
from fractions import Fraction

from hellora.core.errors import InputError

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
SHARE = re.compile(r"([1-9]\d*)/([1-9]\d*)")  # of the model's layers


def parse_bytes(text: str, where: str) -> int:
    """Return a size such as "6GiB" or "500 MB" in bytes.

    Raises:
        InputError: it has no unit, or is no size above 0; the message begins with `where`.
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", str(text))
    unit = found[2].upper() if found else ""
    try:
        size = float(found[1]) if found else 0.0
    except ValueError:
        size = 0.0
    if not found or unit not in UNITS or not size * UNITS[unit] >= 1:
        why = "has no unit" if found and not unit else "is no size"
        raise InputError(f"{where}: {text!r} {why}: write a number and KiB, MiB, GiB, KB, MB or GB, such as '6GiB'")
    return int(size * UNITS[unit])


def in_bytes(count: int) -> str:
    """Write a number of bytes for a person, in binary units."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def parse_layers(layers: int | str) -> int | Fraction:
    """Return a number of layers, or a share of the model's: "1/3", "all"."""
    if isinstance(layers, int):
        return layers
    share = SHARE.fullmatch("1/1" if layers == "all" else layers)
    if share is None or int(share[1]) > int(share[2]):
        raise ValueError(f'layers has {layers!r}: write a number, a share of all layers such as "1/3", or "all"')
    return Fraction(int(share[1]), int(share[2]))
