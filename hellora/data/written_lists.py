"""Read lists that a table of texts has written out: as JSON, as Python prints them, or as numpy does, without commas.

["EU", "rejects"]    ['EU', 'rejects', None]    ['EU' 'rejects']    [3 0]
"""

import ast
import json
import re
import warnings
from collections.abc import Sequence
from typing import Any

from hellora.data.labels import as_written

QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
ITEM = re.compile(rf"{QUOTED}|[+-]?\d[\d.eE+-]*|None|nan|True|False", re.DOTALL)  # all that stands in no quotes
LIST = re.compile(rf"\s*\[\s*(?:(?:{ITEM.pattern})(?:\s*,\s*|\s+|(?=\])))*\]\s*", re.DOTALL)
MISSING = ("None", "nan")


def written_list(text: str) -> list[Any] | None:
    """Return the items of a list: texts, None for one that is missing, and lists or objects where JSON has these. None
    where the text is no list."""
    if not text.lstrip().startswith("["):
        return None
    try:
        found = json.loads(text, parse_int=str, parse_float=str, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return [item_of(match[0]) for match in ITEM.finditer(text)] if LIST.fullmatch(text) else None
    return [as_written(each) if isinstance(each, bool) else each for each in found]


def item_of(written: str) -> str | None:
    """Return what is written as one item."""
    if written[0] not in "'\"":
        return None if written in MISSING else as_written(written == "True") if written[0] in "TF" else written
    if "\\" not in written:
        return written[1:-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a backslash stands for itself
        try:
            return str(ast.literal_eval(written))
        except (SyntaxError, ValueError):
            return written[1:-1]


def is_broken(text: str) -> bool:
    """Say whether a text that is no list begins like one."""
    return text.lstrip().startswith("[")


def written_lists(cells: Sequence[Any]) -> list[list[Any] | None] | None:
    """Return the list that each cell has written out, None for one that has none; None where no cell has one."""
    found = [written_list(cell) if isinstance(cell, str) else None for cell in cells]
    return found if any(each is not None for each in found) else None
