"""Read an experiment file: TOML comes in and checked objects go out, before anything is loaded.

A table holds the settings of its own dataclass, and of the strategies that it names: [method] has the fields of its
sampler, allocator, dispatcher, rules of local training and aggregator, [server] those of its optimizer, [data] those of
its partitioner, [task] those of its task. No two of them may have a setting of one name.
"""

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields, replace
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import Any

from hellora.core.errors import InputError, nearest
from hellora.core.exchange import TrainSettings
from hellora.data.file_names import format_of
from hellora.data.settings import DataSettings
from hellora.experiments import registry
from hellora.experiments.contradictions import contradictions
from hellora.experiments.experiment import Experiment
from hellora.experiments.machine import settled_dtype
from hellora.experiments.own_code import NAMING, named_code, refuse_unnamed_code, with_whole_paths
from hellora.experiments.presets import presets
from hellora.experiments.settings import (
    ComputeSettings,
    FleetSettings,
    MethodSettings,
    PolicySettings,
    RunSettings,
    ServerSettings,
    TaskSettings,
    TrackingSettings,
    WireSettings,
)
from hellora.experiments.tables import Table, build, field_names, plain, settings_of
from hellora.methods.strategies import Method
from hellora.model.load import ModelSettings
from hellora.server.guard import GuardSettings

SECTIONS: dict[str, type] = {
    "task": TaskSettings,
    "model": ModelSettings,
    "data": DataSettings,
    "fleet": FleetSettings,
    "policy": PolicySettings,
    "method": MethodSettings,
    "server": ServerSettings,
    "train": TrainSettings,
    "wire": WireSettings,
    "guard": GuardSettings,
    "compute": ComputeSettings,
    "tracking": TrackingSettings,
}
LISTS = ("local_training",)  # kinds of which an experiment names several, in order


# ----------------------------------------------------------------------------------------------- reading and overriding


def preset_summaries() -> dict[str, list[str]]:
    """Return every preset, with the comment lines that open its file."""
    folder = files("hellora.experiments.presets")
    texts = {name: folder.joinpath(f"{name}.toml").read_text().splitlines() for name in presets()}
    return {n: [line.lstrip("# ") for line in takewhile(is_comment, lines)] for n, lines in texts.items()}


def is_comment(line: str) -> bool:
    return line.startswith("#")


def is_toml(name: str) -> bool:
    return name.endswith(".toml")


def read_experiment(
    source: str, settings: Mapping[str, Any] | None = None, simulated: bool = True, allow: Collection[str] = ()
) -> Experiment:
    """Read and check the experiment of a preset or a TOML file. Nothing is loaded but the strategies that it names.

    Args:
        source: a preset's name, or a TOML file
        settings: what to change in it, `{"section.key": value}`
        simulated: False for clients that bring their own data and budgets, and need not be given any
        allow: code that the file may name, as `--allow` takes it; what `settings` name is allowed

    Raises:
        InputError: the file, a key, a value or a combination is wrong, or it names code that is not allowed; the
            message says what to change.
    """
    changes = settings or {}
    return check(Path(source).stem, override(whole_table(source, {*allow, *named_code(changes)}), changes), simulated)


def read_begun(file: Path, allow: Collection[str], advice: str = "") -> Experiment:
    """Read the experiment of a run's folder, which was checked when it began, without its trackers.

    Raises:
        InputError: it is damaged, or names code that is not in `allow`; `advice` says what to do about that, instead of
            allowing it.
    """
    table = {key: value for key, value in as_written(str(file)).items() if key != "tracking"}
    refuse_unnamed_code(table, allow, file, advice)
    return check(file.stem, table, simulated=False)


def whole_table(source: str, allow: Collection[str], above: tuple[str, ...] = ()) -> Table:
    """Read the table of a preset or file, on top of the one that it names as its `base`. `allow`: see `own_table`."""
    if source in above:
        raise InputError(f"base: {' → '.join((*above, source))} goes round in a circle: remove one base")
    table = own_table(source, allow)
    base = table.pop("base", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise InputError(f"base must be the name of a preset or file, not {base!r}")
    return override(whole_table(base, allow, (*above, source)), settings_of(table))


def own_table(source: str, allow: Collection[str] = ()) -> Table:
    """Read what is written in a preset or file, without its base.

    Raises:
        InputError: there is no such file, or it names code that is not in `allow`.
    """
    table = as_written(source)
    refuse_unnamed_code(table, allow, source)
    return table


def as_written(source: str) -> Table:
    """Read a preset or file, whatever code it names; nothing of it may be made use of before that is looked at."""
    if source in presets():
        data = files("hellora.experiments.presets").joinpath(f"{source}.toml").read_bytes()
    elif format_of(Path(source)):
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


def override(table: Table, settings: Mapping[str, Any]) -> Table:
    """Change `settings` in the table. Naming another strategy drops the settings of the one it replaces."""
    changes = {tuple(key.split(".")): value for key, value in settings.items()}
    for path in changes:
        if not all(path) or len(path) > 2:
            raise InputError(f"{'.'.join(path)!r} names no setting: write section.key, such as train.lr")
    table = {key: dict(value) if isinstance(value, dict) else value for key, value in table.items()}
    for (section, key), kind in NAMING.items():
        if (section, key) in changes and isinstance(table.setdefault(section, {}), dict):
            old = named_in(table[section].get(key, default_of(section, key)))
            new = named_in(changes[section, key])
            for orphan in settings_of_strategies(kind, old) - settings_of_strategies(kind, new):
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


def named_in(value: Any) -> list[str]:
    """Return the names that a key which names strategies has; what is no name is left to `check`."""
    return [name for name in (value if isinstance(value, list | tuple) else [value]) if isinstance(name, str)]


def settings_of_strategies(kind: str, names: Sequence[str]) -> set[str]:
    return set[str]().union(*(field_names(registry.find(kind, name)) for name in names))


# ------------------------------------------------------------------------------------------------------------- checking


def check(name: str, table: Mapping[str, Any], simulated: bool = True) -> Experiment:
    """Make checked objects of a table; every unknown key, wrong value and contradiction is an InputError. What
    simulated clients need to be given, real ones bring along. Code that the table names is imported."""
    for section in SECTIONS:
        if not isinstance(table.get(section, {}), dict):
            raise InputError(
                f"{section} must be a table: write [{section}] and its settings below it, or --set {section}.KEY=…"
            )
    if simulated:  # in a deployment each side has its own files
        table = with_whole_paths(table)
    top = {key: value for key, value in table.items() if key not in SECTIONS}
    built: dict[str, Any] = {"run": build(RunSettings, top, "", [*field_names(RunSettings), *SECTIONS])}
    resolved: Table = plain(asdict(built["run"]))
    strategies: dict[str, list[Any]] = {}
    for section in SECTIONS:
        built[section], found = check_section(section, dict(table.get(section, {})))
        strategies |= found
        resolved[section] = plain(asdict(built[section]))
        for each in (strategy for several in found.values() for strategy in several):
            resolved[section] |= plain(asdict(each))
    if built["model"].dtype == "auto":  # all sides of a deployment load what its server settles
        built["model"] = replace(built["model"], dtype=settled_dtype(built["compute"].device))
        resolved["model"]["dtype"] = built["model"].dtype
    method = method_of(built.pop("method"), strategies)
    resolved["method"]["local_training"] = with_brought(resolved["method"]["local_training"], method)
    del built["task"], built["server"]
    (task,), (partitioner,) = strategies["task"], strategies["partitioner"]
    experiment = Experiment(name=name, method=method, task=task, partitioner=partitioner, table=resolved, **built)
    contradictions(experiment, simulated)
    return experiment


def check_section(section: str, content: Table) -> tuple[Any, dict[str, list[Any]]]:
    """Build a section's own settings, and the strategies that it names, by kind; give every setting to its owner."""
    cls = SECTIONS[section]
    chosen = [(key, kind, each) for key, kind in kinds_of(section) for each in classes_of(section, key, kind, content)]
    owners = dict.fromkeys(field_names(cls), f"[{section}]")
    for key, _, (name, strategy) in chosen:
        for field in field_names(strategy):
            if field in owners:
                raise InputError(
                    f"{section}.{key} = {name!r} and {owners[field]} both have a setting {field!r}, so that neither "
                    f"could be told from the other: give it another name in one of them"
                )
            owners[field] = f"{section}.{key} = {name!r}"
    strategies: dict[str, list[Any]] = {kind: [] for _, kind in kinds_of(section)}
    for _, kind, (_, strategy) in chosen:
        mine = {key: content.pop(key) for key in field_names(strategy) & content.keys()}
        strategies[kind].append(build(strategy, mine, section, sorted(owners)))
    return build(cls, content, section, sorted(owners)), strategies


def kinds_of(section: str) -> list[tuple[str, str]]:
    """Return the keys of a section that name strategies, with their kinds."""
    return [(key, kind) for (owner, key), kind in NAMING.items() if owner == section]


def classes_of(section: str, key: str, kind: str, content: Table) -> list[tuple[str, type[Any]]]:
    """Find the strategies that a key names, each with its class."""
    value = content.get(key, default_of(section, key))
    if kind not in LISTS:
        if not isinstance(value, str):
            raise InputError(f"{section}.{key} must be a name, not {value!r}")
        return [(value, registry.find(kind, value))]
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{section}.{key} must be a list of names, such as ['plain'], not {value!r}")
    found = [(name, registry.find(kind, name)) for name in value]
    files = [cls.__module__.rpartition(".")[2] for _, cls in found]
    for name, file in zip(value, files, strict=True):
        if files.count(file) > 1:
            raise InputError(f"{section}.{key} names {name!r} twice, or two of one file name: keep one of them")
    return found


def method_of(settings: MethodSettings, strategies: Mapping[str, Sequence[Any]]) -> Method:
    """Make the method, with the rules of local training that its strategies bring along."""
    (sampler,), (allocator,), (dispatcher,) = (strategies[kind] for kind in ("sampler", "allocator", "dispatcher"))
    (aggregator,), (optimizer,) = strategies["aggregator"], strategies["server_optimizer"]
    rules = list(strategies["local_training"])
    for each in (sampler, allocator, dispatcher, *rules, aggregator, optimizer):
        for name in each.demands.brings:
            if name not in [rule.name for rule in rules]:
                rules.append(registry.find("local_training", name)())
    return Method(
        sampler=sampler,
        allocator=allocator,
        dispatcher=dispatcher,
        local_training=tuple(rules),
        aggregator=aggregator,
        server_optimizer=optimizer,
        head=settings.head,
        trains=settings.trains,
        shares=settings.shares,
    )


def with_brought(named: list[str], method: Method) -> list[str]:
    """Return the names of rules as they were given, and those that strategies brought along."""
    return [*named, *(rule.name for rule in method.local_training[len(named) :])]
