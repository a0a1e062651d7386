"""Tables of an experiment file as plain values."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

Table = dict[str, Any]


def settings_of(table: Table) -> dict[str, Any]:
    """A table as settings: "section.key" with its value."""
    settings: dict[str, Any] = {}
    for key, value in table.items():
        settings |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return settings


def plain(values: Mapping[str, Any]) -> Table:
    """As TOML can hold it: no None (its key is left out), lists for tuples."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}


def field_names(cls: type) -> set[str]:
    """The names of a dataclass's fields."""
    return {f.name for f in fields(cls)}
