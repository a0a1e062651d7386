"""The tables of an experiment, what holds the settings of each, and how settings of a table are changed.

Nothing is imported of what the tables hold.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hellora.core.errors import InputError
from hellora.experiments import registry
from hellora.experiments.outlines import outline
from hellora.experiments.own_code import NAMING
from hellora.experiments.tables import Table

TOP = "hellora.experiments.settings:RunSettings"
SECTIONS = {
    "task": "hellora.experiments.settings:TaskSettings",
    "model": "hellora.model.settings:ModelSettings",
    "data": "hellora.data.settings:DataSettings",
    "fleet": "hellora.experiments.settings:FleetSettings",
    "policy": "hellora.experiments.settings:PolicySettings",
    "method": "hellora.experiments.method_settings:MethodSettings",
    "server": "hellora.experiments.settings:ServerSettings",
    "train": "hellora.core.exchange:TrainSettings",
    "wire": "hellora.experiments.settings:WireSettings",
    "guard": "hellora.server.guard:GuardSettings",
    "stop": "hellora.experiments.stopping:StopSettings",
    "compute": "hellora.experiments.settings:ComputeSettings",
    "tracking": "hellora.experiments.settings:TrackingSettings",
}


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


def defaults_of(place: str) -> Mapping[str, Any]:
    """Return the settings of a "module:Class" with their defaults, as far as they are literals."""
    module, _, name = place.partition(":")
    return outline(module, name).defaults


def default_of(section: str, key: str) -> Any:
    return defaults_of(SECTIONS[section])[key]


def named_in(value: Any) -> list[str]:
    """Return the names that a key which names strategies has; what is no name is left to `check`."""
    return [name for name in (value if isinstance(value, list | tuple) else [value]) if isinstance(name, str)]


def settings_of_strategies(kind: str, names: Sequence[str]) -> set[str]:
    return set[str]().union(*(registry.settings_of(kind, name) for name in names))
