"""Turn tables of an experiment file into plain values, and into the dataclasses that check them."""

import difflib
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hellora.core.errors import InputError, nearest

Table = dict[str, Any]
# Settings that were elsewhere in earlier versions, and where they are now.
MOVED = {
    "train.tail_penalty": "method.tail_penalty",
    "train.tail_share": "method.tail_share",
    "train.min_rank": "method.min_rank",
}


def settings_of(table: Table) -> dict[str, Any]:
    """Return a table as settings: "section.key" with its value."""
    settings: dict[str, Any] = {}
    for key, value in table.items():
        settings |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return settings


def plain(values: Mapping[str, Any]) -> Table:
    """Make a table as TOML can hold it: no None (its key is left out), lists for tuples."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}


def field_names(cls: type) -> set[str]:
    """Return the names of a dataclass's fields."""
    return {f.name for f in fields(cls)}


def check_keys(
    content: Mapping[str, Any],
    section: str,
    known: Collection[str],
    near: Collection[str] = (),
    meant: Callable[[str, Any, bool], list[str]] = lambda *_: [],
) -> None:
    """Raise InputError where a table has other keys than the `known` ones; the message has the settings that are
    `meant` by the key and its value, with whether some key is close, or else the nearest of these and `near`."""
    dot = f"{section}." if section else ""
    for key in content:
        if (moved := MOVED.get(f"{dot}{key}")) is not None:
            raise InputError(
                f"{dot}{key} is now {moved}, of the rule method.local_training = ['hetlora']; a run of an older "
                f"hellora cannot be gone on with"
            )
        if key not in known:
            mend = nearest(key, sorted({*known, *near}))
            if places := meant(key, content[key], mend.endswith("?")):
                mend = f": did you mean {' or '.join(places)}?"
            raise InputError(f"unknown setting {dot}{key}{mend}")


def build(cls: type, content: Mapping[str, Any], section: str, near: Collection[str] = ()) -> Any:
    """Build one dataclass from its part of a table; its other keys, which are no settings of it, may be `near`."""
    dot = f"{section}." if section else ""
    check_keys(content, section, field_names(cls), near)
    for f in fields(cls):
        if f.name not in content and f.default is MISSING and f.default_factory is MISSING:
            raise InputError(f"{dot}{f.name} is missing: {cls.__name__} needs it")
    for key, value in content.items():
        if any(isinstance(v, float) and not math.isfinite(v) for v in (value if isinstance(value, list) else [value])):
            raise InputError(f"{dot}{key} must be a finite number, not {value}")
    try:
        # As JSON, because that is where pydantic is strict (no text for a number) and still takes lists for tuples.
        return TypeAdapter(cls).validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        errors = error.errors()
        word = next((each for each in errors if each["type"] == "literal_error"), errors[0])
        alike = difflib.get_close_matches(str(word["input"]), [str(word.get("ctx", {}).get("expected")).strip("'")])
        first = word if word["loc"][:1] == errors[0]["loc"][:1] and alike else errors[0]
        where = dot + ".".join(str(part) for part in first["loc"][:1])
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] in ("list_type", "tuple_type"):
            groups = ", with a value for each group of clients" if section == "fleet" else ""
            lists = [len(value) for value in content.values() if isinstance(value, list)] if groups else []
            written = (
                "[…]" if isinstance(first["input"], dict) else json.dumps([first["input"]] * max(lists, default=1))
            )
            raise InputError(f"{where} is a list{groups}: write {where} = {written}") from error
        given = f", not {first['input']!r}" if first["loc"] else ""
        raise InputError(f"{where.rstrip('.') or 'the experiment'}: {what}{given}") from error
