"""Read an experiment file: TOML comes in and checked objects go out, before anything is loaded.

A table holds the settings of its own dataclass, and of the strategies that it names: [method] has the fields of its
start, sampler, allocator, dispatcher, rules of local training and aggregator, [server] those of its optimizer, [data]
those of its partitioner, [task] those of its task. No two of them may have a setting of one name.

Tables, keys and names are read and checked first, for which nothing of what they name is imported.
"""

import json
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hellora.core.errors import InputError
from hellora.data.file_names import format_of
from hellora.experiments import registry
from hellora.experiments.elsewhere import setting_called
from hellora.experiments.found_task import found_task
from hellora.experiments.meant import instead_of, placed, preset_meant
from hellora.experiments.own_code import NAMING, named_code, refuse_unnamed_code, with_whole_paths
from hellora.experiments.presets import presets
from hellora.experiments.sections import SECTIONS, TOP, default_of, defaults_of, override
from hellora.experiments.tables import Table, build, check_keys, plain, settings_of

if TYPE_CHECKING:
    from hellora.experiments.experiment import Experiment
    from hellora.experiments.method_settings import MethodSettings
    from hellora.methods.strategies import Method


# ----------------------------------------------------------------------------------------------- reading and overriding


def is_toml(name: str) -> bool:
    return name.endswith(".toml")


def read_experiment(
    source: str,
    settings: Mapping[str, Any] | None = None,
    simulated: bool = True,
    allow: Collection[str] = (),
    rows: Any = None,
) -> "Experiment":
    """Read and check the experiment of a preset or a TOML file. Nothing is loaded but the strategies that it names.

    Args:
        source: a preset's name, or a TOML file
        settings: what to change in it, `{"section.key": value}`
        simulated: False for clients that bring their own data and budgets, and need not be given any
        allow: code that the file may name, as `--allow` takes it; what `settings` name is allowed
        rows: the training split, where it is an object in memory, which no name leads to

    Raises:
        InputError: the file, a key, a value or a combination is wrong, or it names code that is not allowed; the
            message says what to change.
    """
    changes = settings or {}
    with placed(source, changes):
        given = whole_table(source, {*allow, *named_code(changes)})
        table, found = settled_task(given, changes, source in presets(), rows)
        return replace(check(Path(source).stem, table, simulated), found=found)


def read_begun(file: Path, allow: Collection[str], advice: str = "") -> "Experiment":
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
        raise InputError(f"there is no preset or file {source!r}{preset_meant(source)}")
    try:
        return tomllib.loads(data.decode())
    except ValueError as error:
        raise InputError(f"{source} is not valid TOML: {error}") from error


def settled_task(table: Table, changes: Mapping[str, Any], preset: bool, rows: Any = None) -> tuple[Table, str]:
    """Change `changes` in a table, with the task that data and model are for where nobody names one; return it, and how
    that was found, "" where it was not looked for. Who changes data or model of a preset has not named its task.
    """
    changed = override(table, changes)
    named = isinstance(task := changed.get("task", {}), dict) and "name" in task
    if "task.name" in changes or (named and not (preset and changes.keys() & {"data.name", "model.name"})):
        return changed, ""
    found = found_task(changed, rows)
    if found is None or (not named and not found.takes(task)):
        return changed, ""
    return override(
        override(table, {"task.name": found.name} if named else {}), {**changes, "task.name": found.name}
    ), found.why


# ------------------------------------------------------------------------------------------------------------- checking


def check(name: str, table: Mapping[str, Any], simulated: bool = True) -> "Experiment":
    """Make checked objects of a table; every unknown key, wrong value and contradiction is an InputError. What
    simulated clients need to be given, real ones bring along. Code that the table names is imported."""
    if simulated:  # in a deployment each side has its own files
        table = with_whole_paths(table)
    check_names(table)
    from hellora.experiments.contradictions import contradictions
    from hellora.experiments.experiment import Experiment
    from hellora.experiments.machine import settled_dtype

    top = {key: value for key, value in table.items() if key not in SECTIONS}
    built: dict[str, Any] = {"run": build(registry.named(TOP), top, "")}
    resolved: Table = plain(asdict(built["run"]))
    strategies: dict[str, list[Any]] = {}
    for section in SECTIONS:
        built[section], found = build_section(section, table.get(section, {}))
        strategies |= found
        resolved[section] = plain(asdict(built[section]))
        for each in (strategy for several in found.values() for strategy in several):
            resolved[section] |= plain(asdict(each))
    if built["model"].dtype == "auto":  # all sides of a deployment load what its server settles
        built["model"] = replace(built["model"], dtype=settled_dtype(built["compute"].device))
        resolved["model"]["dtype"] = built["model"].dtype
    method = method_of(built.pop("method"), strategies)
    resolved["method"]["local_training"] = with_brought(resolved["method"]["local_training"], method)
    metrics = tuple(registry.metric(each) for each in built.pop("task").metrics)
    del built["server"]
    (task,), (partitioner,) = strategies["task"], strategies["partitioner"]
    own = {"method": method, "task": task, "partitioner": partitioner, "metrics": metrics}
    experiment = Experiment(name=name, table=resolved, **own, **built)
    contradictions(experiment, simulated)
    return experiment


def check_names(table: Mapping[str, Any]) -> None:
    """Check sections, keys, and names of strategies.

    Raises:
        InputError: one is unknown, or a key could belong to two strategies.
    """
    for section in SECTIONS:
        if not isinstance(table.get(section, {}), dict):
            raise InputError(f"{section} must be a table: {instead_of(section, table[section])}")

    def meant(key: str, value: Any, close: bool) -> list[str]:
        return settings_meant(table, key, value, close)

    check_keys(table, "", [*defaults_of(TOP), *SECTIONS], meant=meant)
    for section in SECTIONS:
        content = table.get(section, {})
        check_keys(content, section, owners(section, content), meant=meant)


def settings_meant(table: Mapping[str, Any], key: str, value: Any, close: bool) -> list[str]:
    """Return the settings that an unknown key may mean: by its name elsewhere, where it is a table of another name by
    what that holds or, unless its own table has one that is `close`, as a key of another table of the experiment."""
    if (ours := setting_called(key)) is not None:
        return [ours]
    if isinstance(value, dict):
        return [ours for each in value if (ours := setting_called(each)) is not None]
    if close:
        return []
    above = [key] if key in defaults_of(TOP) else []
    return above + [f"{each}.{key}" for each in SECTIONS if key in owners(each, table.get(each, {}))]


def owners(section: str, content: Table) -> dict[str, str]:
    """Return the settings of a section and of the strategies that it names, each with its owner."""
    found = dict.fromkeys(defaults_of(SECTIONS[section]), f"[{section}]")
    for key, kind in kinds_of(section):
        for name in names_of(section, key, kind, content):
            for field in registry.settings_of(kind, name):
                if field in found:
                    raise InputError(
                        f"{section}.{key} = {name!r} and {found[field]} both have a setting {field!r}, so that "
                        f"neither could be told from the other: give it another name in one of them"
                    )
                found[field] = f"{section}.{key} = {name!r}"
    return found


def build_section(section: str, content: Table) -> tuple[Any, dict[str, list[Any]]]:
    """Build a section's own settings, and the strategies that it names, by kind; give every setting to its owner."""
    strategies: dict[str, list[Any]] = {kind: [] for _, kind in kinds_of(section)}
    for key, kind in kinds_of(section):
        for name in names_of(section, key, kind, content):
            mine = part(content, registry.settings_of(kind, name))
            strategies[kind].append(build(registry.find(kind, name), mine, section))
    return build(registry.named(SECTIONS[section]), part(content, defaults_of(SECTIONS[section])), section), strategies


def part(content: Table, keys: Collection[str]) -> Table:
    return {key: content[key] for key in keys if key in content}


def kinds_of(section: str) -> list[tuple[str, str]]:
    """Return the keys of a section that name strategies, with their kinds."""
    return [(key, kind) for (owner, key), kind in NAMING.items() if owner == section]


def names_of(section: str, key: str, kind: str, content: Table) -> list[str]:
    """Return the strategies that a key names."""
    value = content.get(key, default_of(section, key))
    if kind not in registry.LISTS:
        if not isinstance(value, str):
            raise InputError(f"{section}.{key} must be a name, not {value!r}")
        return [value]
    if isinstance(value, str):
        raise InputError(f"{section}.{key} is a list: write {section}.{key} = {json.dumps([value])}")
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{section}.{key} must be a list of names, such as ['plain'], not {value!r}")
    files = [registry.file_of(kind, name) for name in value]
    for name, file in zip(value, files, strict=True):
        if files.count(file) > 1:
            raise InputError(f"{section}.{key} names {name!r} twice, or two of one file name: keep one of them")
        if file == "private":  # what a client keeps of its own model has this name
            raise InputError(f"{section}.{key} names {name!r}: give its file another name than private.py")
    return list(value)


def method_of(settings: "MethodSettings", strategies: Mapping[str, Sequence[Any]]) -> "Method":
    """Make the method, with the rules of local training that its strategies bring along."""
    from hellora.methods.strategies import Method

    kinds = [kind for (section, _), kind in NAMING.items() if section in ("method", "server")]
    single = {kind: strategies[kind][0] for kind in kinds if kind not in registry.LISTS}
    rules = list(strategies["local_training"])
    for each in (*single.values(), *rules):
        for name in each.demands.brings:
            if name not in [rule.name for rule in rules]:
                rules.append(registry.find("local_training", name)())
    if settings.head_mean == "by_class" and "class_counts" not in [rule.name for rule in rules]:
        rules.append(registry.find("local_training", "class_counts")())
    own = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name not in strategies}
    return Method(**own, **single, local_training=tuple(rules))


def with_brought(named: list[str], method: "Method") -> list[str]:
    """Return the names of rules as they were given, and those that strategies brought along."""
    return [*named, *(rule.name for rule in method.local_training[len(named) :])]
