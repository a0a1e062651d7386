"""An experiment file: TOML in, checked objects out, before anything is loaded.

A table holds the settings of its own dataclass, and of the strategies that it names: [method] has the fields of its
allocator, dispatcher and aggregator, [data] those of its partitioner, [task] those of its task.
"""

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import TypeAdapter, ValidationError

from hellora.core.errors import InputError, nearest
from hellora.core.types import TrainSettings
from hellora.data.loading import FORMATS
from hellora.data.partitioning import Partitioner
from hellora.data.sources import DataSettings
from hellora.experiments import registry
from hellora.experiments.contradictions import contradictions
from hellora.experiments.presets import presets
from hellora.experiments.settings import (
    ComputeSettings,
    FleetSettings,
    GuardSettings,
    MethodSettings,
    PolicySettings,
    RunSettings,
    TaskSettings,
    TrackingSettings,
    WireSettings,
)
from hellora.methods.protocols import Method
from hellora.methods.server_step import ServerStep
from hellora.model.load import ModelSettings
from hellora.tasks import Task

Table = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Experiment:
    """A checked experiment. `table` is the whole of it with every default written out."""

    name: str
    run: RunSettings
    task: Task
    model: ModelSettings
    data: DataSettings
    partitioner: Partitioner
    fleet: FleetSettings
    policy: PolicySettings
    method: Method
    train: TrainSettings
    wire: WireSettings
    guard: GuardSettings
    compute: ComputeSettings
    tracking: TrackingSettings
    table: Table = field(repr=False)

    def to_toml(self) -> str:
        """The whole of it as an experiment file, every default written out."""
        return tomli_w.dumps(self.table)

    def same_run(self, other: "Experiment") -> bool:
        """True if both describe the same computation."""
        return not self.differences(other)

    def differences(self, other: "Experiment") -> list[str]:
        """The settings, "section.key", in which the two are not the same computation. Where it is done, who is told of
        it, and when it gives up, may change."""
        mine, theirs = (settings_of({k: v for k, v in e.table.items() if k not in MAY_CHANGE}) for e in (self, other))
        return sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))

    def with_threads(self, threads: int) -> "Experiment":
        """The same with `compute.threads` settled."""
        compute = replace(self.compute, threads=threads)
        return replace(self, compute=compute, table={**self.table, "compute": plain(asdict(compute))})


MAY_CHANGE = ("compute", "tracking", "min_clients", "attempts")  # from one resume to the next
SECTIONS: dict[str, type] = {
    "task": TaskSettings,
    "model": ModelSettings,
    "data": DataSettings,
    "fleet": FleetSettings,
    "policy": PolicySettings,
    "method": MethodSettings,
    "server": ServerStep,
    "train": TrainSettings,
    "wire": WireSettings,
    "guard": GuardSettings,
    "compute": ComputeSettings,
    "tracking": TrackingSettings,
}
# The keys that name a strategy, and the kind of strategy they name.
NAMING: dict[tuple[str, str], str] = {
    ("task", "name"): "task",
    ("data", "partitioner"): "partitioner",
    ("method", "allocator"): "allocator",
    ("method", "dispatcher"): "dispatcher",
    ("method", "aggregator"): "aggregator",
}


# ----------------------------------------------------------------------------------------------- reading and overriding


def preset_summaries() -> dict[str, list[str]]:
    """Every preset, with the comment lines that open its file."""
    folder = files("hellora.experiments.presets")
    texts = {name: folder.joinpath(f"{name}.toml").read_text().splitlines() for name in presets()}
    return {n: [line.lstrip("# ") for line in takewhile(is_comment, lines)] for n, lines in texts.items()}


def is_comment(line: str) -> bool:
    return line.startswith("#")


def is_toml(name: str) -> bool:
    return name.endswith(".toml")


def read_experiment(source: str, settings: Mapping[str, Any] | None = None, simulated: bool = True) -> Experiment:
    """The checked experiment of a preset or a TOML file. Nothing is loaded.

    Args:
        source: a preset's name, or a TOML file
        settings: what to change in it, `{"section.key": value}`
        simulated: False for clients that bring their own data and budgets, and need not be given any

    Raises:
        InputError: the file, a key, a value or a combination is wrong; the message says what to change.
    """
    return check(Path(source).stem, override(whole_table(source), settings or {}), simulated)


def whole_table(source: str, above: tuple[str, ...] = ()) -> Table:
    """The table of a preset or file, on top of the one that it names as its `base`."""
    if source in above:
        raise InputError(f"base: {' → '.join((*above, source))} goes round in a circle: remove one base")
    table = own_table(source)
    base = table.pop("base", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise InputError(f"base must be the name of a preset or file, not {base!r}")
    return override(whole_table(base, (*above, source)), settings_of(table))


def own_table(source: str) -> Table:
    """What is written in a preset or file, without its base."""
    if source in presets():
        data = files("hellora.experiments.presets").joinpath(f"{source}.toml").read_bytes()
    elif Path(source).suffix in FORMATS:
        raise InputError(f"{source} is no experiment file: for data, hellora run quickstart --set data.name={source}")
    elif Path(source).is_file():
        data = Path(source).read_bytes()
    elif "/" in source or is_toml(source):
        raise InputError(f"there is no experiment file {source}")
    else:
        raise InputError(f"there is no preset or file {source!r}{nearest(source, presets())}")
    try:
        return tomllib.loads(data.decode())
    except ValueError as error:
        raise InputError(f"{source} is not valid TOML: {error}") from error


def settings_of(table: Table) -> dict[str, Any]:
    """A table as settings: "section.key" with its value."""
    settings: dict[str, Any] = {}
    for key, value in table.items():
        settings |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return settings


def override(table: Table, settings: Mapping[str, Any]) -> Table:
    """The table with `settings` changed. Naming another strategy drops the settings of the one it replaces."""
    changes = {tuple(key.split(".")): value for key, value in settings.items()}
    for path in changes:
        if not all(path) or len(path) > 2:
            raise InputError(f"{'.'.join(path)!r} names no setting: write section.key, such as train.lr")
    table = {key: dict(value) if isinstance(value, dict) else value for key, value in table.items()}
    for (section, key), kind in NAMING.items():
        if (section, key) in changes and isinstance(table.setdefault(section, {}), dict):
            old, new = table[section].get(key, default_of(section, key)), changes[section, key]
            if isinstance(old, str) and isinstance(new, str):
                for orphan in field_names(registry.find(kind, old)) - field_names(registry.find(kind, new)):
                    table[section].pop(orphan, None)
    for path, value in changes.items():
        owner = table
        for part in path[:-1]:
            owner = owner.setdefault(part, {})
            if not isinstance(owner, dict):
                raise InputError(f"{'.'.join(path)}: {part} is a setting, not a table")
        owner[path[-1]] = value
    return table


def default_of(section: str, key: str) -> Any:
    return next(f.default for f in fields(SECTIONS[section]) if f.name == key)


def field_names(cls: type) -> set[str]:
    return {f.name for f in fields(cls)}


# ------------------------------------------------------------------------------------------------------------- checking


def check(name: str, table: Mapping[str, Any], simulated: bool = True) -> Experiment:
    """Checked objects from a table; every unknown key, wrong value and contradiction is an InputError. What simulated
    clients need to be given, real ones bring along."""
    tables = {section: table.get(section, {}) for section in SECTIONS}
    for section, content in tables.items():
        if not isinstance(content, dict):
            raise InputError(
                f"{section} must be a table: write [{section}] and its settings below it, or --set {section}.KEY=…"
            )
    top = {key: value for key, value in table.items() if key not in SECTIONS}
    built: dict[str, Any] = {"run": build(RunSettings, top, "", [*field_names(RunSettings), *SECTIONS])}
    strategies: dict[str, Any] = {}
    resolved: Table = plain(asdict(built["run"]))
    for section, cls in SECTIONS.items():
        content = dict(tables[section])
        kinds = [(key, kind) for (owner, key), kind in NAMING.items() if owner == section]
        chosen = {}
        for key, kind in kinds:
            value = content.get(key, default_of(section, key))
            if not isinstance(value, str):
                raise InputError(f"{section}.{key} must be a name, not {value!r}")
            chosen[kind] = registry.find(kind, value)
        known = sorted(field_names(cls).union(*(field_names(c) for c in chosen.values())))
        for kind, strategy in chosen.items():
            mine = {key: content.pop(key) for key in field_names(strategy) & content.keys()}
            strategies[kind] = build(strategy, mine, section, known)
        built[section] = build(cls, content, section, known)
        resolved[section] = plain(asdict(built[section]))
        for kind in chosen:
            resolved[section] |= plain(asdict(strategies[kind]))
    settings: MethodSettings = built.pop("method")
    method = Method(
        strategies["allocator"],
        strategies["dispatcher"],
        strategies["aggregator"],
        built.pop("server"),
        settings.head,
        settings.trains,
        settings.shares,
    )
    del built["task"]
    experiment = Experiment(
        name=name,
        method=method,
        task=strategies["task"],
        partitioner=strategies["partitioner"],
        table=resolved,
        **built,
    )
    contradictions(experiment, simulated)
    return experiment


def build(cls: type, content: Mapping[str, Any], section: str, known: Sequence[str]) -> Any:
    """One dataclass from its part of a table; `known` are the keys that the whole table may have."""
    dot = f"{section}." if section else ""
    for key in content:
        if key not in field_names(cls):
            raise InputError(f"unknown setting {dot}{key}{nearest(key, sorted(known))}")
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
        first = error.errors()[0]
        where = dot + ".".join(str(part) for part in first["loc"][:1])
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] in ("list_type", "tuple_type"):
            what = f"Input should be a list, such as {json.dumps([first['input']])}"
        given = f", not {first['input']!r}" if first["loc"] else ""
        raise InputError(f"{where.rstrip('.') or 'the experiment'}: {what}{given}") from error


def plain(values: Mapping[str, Any]) -> Table:
    """As TOML can hold it: no None (its key is left out), lists for tuples."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}
