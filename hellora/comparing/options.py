"""What a command line or a Python call says of a comparison beside its file is put into the file's form."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hellora.comparing.statistics import HEAD_ALONE
from hellora.core.errors import InputError
from hellora.experiments.overrides import parse_value
from hellora.experiments.tables import Table

NEXT_SETTING = re.compile(r",(?=\s*[\w.]+\s*=)")  # a comma inside a value is followed by no key


def changes_of(
    experiment: Mapping[str, Any] | None,
    methods: Mapping[str, Mapping[str, Any]] | None,
    settings: Mapping[str, Mapping[str, Any]] | None,
    grid: Mapping[str, Sequence[Any]] | None,
    *,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    seeds: Sequence[Any] | None = None,
    target: Any = None,
    budget: Any = None,
    memory: Sequence[str] | None = None,
    ridge_head: bool = False,
) -> dict[str, Any]:
    """Put what is said of a comparison beside its file into the file's form; None leaves what the file says."""
    tables: dict[str, Any] = {
        "experiment": dict(experiment or {}),
        "methods": dict(methods or {}),
        "settings": dict(settings or {}),
        "sweep": dict(sweep or {}),
        "tune": {"grid": dict(grid)} if grid else {},
    }
    single = {"seeds": seeds and list(seeds), "target": target, "budget": budget, "memory": memory and list(memory)}
    single |= {HEAD_ALONE: True} if ridge_head else {}
    return tables | {key: value for key, value in single.items() if value is not None}


def parse_named(option: str, texts: Sequence[str]) -> dict[str, Table]:
    """Read `NAME=SECTION.KEY=VALUE,…` texts as tables of settings by name; nothing after `NAME=` is the base itself."""
    tables: dict[str, Table] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        pairs = [part.partition("=") for part in NEXT_SETTING.split(rest)] if rest.strip() else []
        if not equals or not all(key.strip() and sign for key, sign, _ in pairs):
            raise InputError(f"{option} {text!r}: write it as name=section.key=value,section.key=value")
        keys = [key.strip() for key, _, _ in pairs]
        if name.strip() in tables or len(set(keys)) < len(keys):
            raise InputError(f"{option} {text!r}: {name.strip()} or a setting of it is given twice: leave one out")
        tables[name.strip()] = {key.strip(): parse_value(value.strip()) for key, _, value in pairs}
    return tables


def parse_values(option: str, texts: Sequence[str]) -> Table:
    """Read `SECTION.KEY=VALUE,VALUE,…` texts as the values of each key."""
    grid = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not key.strip() or not values.strip():
            raise InputError(f"{option} {text!r}: write it as section.key=value,value, such as train.lr=1e-3,1e-2")
        listed = parse_value(f"[{values}]")  # names without quotes are no TOML
        grid[key.strip()] = listed if isinstance(listed, list) else [parse_value(v.strip()) for v in values.split(",")]
    return grid
