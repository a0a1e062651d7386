"""The registry is the folder: `allocator = "geometric"` means allocators/geometric.py. `"mine.py:Mine"` is a user's
own class (`own_code`).

Names and their settings are told without an import of what they name.
"""

import importlib
import inspect
from dataclasses import fields
from typing import Any

from hellora.client.own_metrics import BUILT_IN, Metric
from hellora.core.errors import InputError, nearest, one_line
from hellora.experiments.elsewhere import presets_called, spelt, strategy_called
from hellora.experiments.outlines import modules, outline
from hellora.experiments.own_code import NAMING, is_code, load
from hellora.experiments.presets import named_by

# The folder of a kind, and the class that all of it extend.
FOLDERS: dict[str, tuple[str, str]] = {
    "start": ("hellora.methods.starts", "hellora.methods.strategies:Start"),
    "sampler": ("hellora.methods.samplers", "hellora.methods.strategies:Sampler"),
    "allocator": ("hellora.methods.allocators", "hellora.methods.strategies:Allocator"),
    "dispatcher": ("hellora.methods.dispatchers", "hellora.methods.strategies:Dispatcher"),
    "local_training": ("hellora.methods.local_training", "hellora.methods.strategies:LocalTraining"),
    "aggregator": ("hellora.methods.aggregators", "hellora.methods.strategies:Aggregator"),
    "server_optimizer": ("hellora.methods.server_optimizers", "hellora.methods.strategies:ServerOptimizer"),
    "task": ("hellora.tasks", "hellora.tasks:Task"),
    "partitioner": ("hellora.data.partitioners", "hellora.data.partitioning:Partitioner"),
}
LISTS = ("local_training",)  # kinds of which an experiment names several, in order
KEYS = {kind: key for key, kind in NAMING.items()}  # the section and the key that name a strategy of a kind


def names(kind: str) -> list[str]:
    """Return the registered names of a kind, sorted."""
    return modules(FOLDERS[kind][0])


def heading(kind: str) -> str:
    """Return the kind in words, as a list of its names is headed: that of its folder, such as "local training"."""
    return FOLDERS[kind][0].rpartition(".")[2].replace("_", " ")


def metric(name: str) -> Metric:
    """Find a metric that a task is to be measured by besides its own.

    Raises:
        InputError: there is none; the message has the nearest name.
    """
    if not is_code(name):
        if name not in BUILT_IN:
            raise InputError(
                f"task.metrics: there is no metric {name!r}{nearest(name, sorted(BUILT_IN))}, or name a function of "
                f"your own, such as 'mine.py:{name if name.isidentifier() else 'function'}'"
            )
        return Metric(name, BUILT_IN[name])
    try:
        found = load(name)
    except Exception as error:  # whatever a user's module raises
        why = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"task.metrics: {name!r} cannot be imported: {why}: correct it") from error
    if not callable(found):
        raise InputError(f"task.metrics: {name!r} is no function: name one that takes predictions and references")
    return Metric(name, found)


def check_name(kind: str, name: str) -> None:
    """Raise InputError unless the kind has the name; the message says what else is called that, or the nearest one."""
    if name not in names(kind):
        mend = misplaced(kind, name) or (nearest_task(name) if kind == "task" else nearest_name(kind, name))
        raise InputError(f"{'.'.join(KEYS[kind])}: there is no {kind} {name!r}{mend}")


def misplaced(kind: str, name: str) -> str:
    """Return the end of an error message where a preset's name, or one of another kind, stands for that of a kind."""
    if spelt(name, names(kind)) or strategy_called(kind, name):
        return ""
    if called := presets_called(name):
        its = named_by(called[0], *KEYS[kind])
        known = f" (its {kind} is {', '.join(its)})" if its else ""
        written = " or ".join(f"hellora run {preset}" for preset in called)
        return f": {called[0]} is a preset: write {written}{known}"
    for other, word in strategies_called(name):
        if other != kind:
            section, key = KEYS[other]
            return f": {word} is a name of {section}.{key}; choose among {', '.join(names(kind))}"
    return ""


def strategies_called(name: str) -> list[tuple[str, str]]:
    """Return the strategies that have a name, here or elsewhere, each with its kind."""
    meant = {kind: spelt(name, names(kind)) or strategy_called(kind, name) for kind in FOLDERS}
    return [(kind, word) for kind, word in meant.items() if word is not None]


def said_on_the_command_line(kind: str, name: str) -> str:
    """Say how a strategy is set on the command line."""
    section, key = KEYS[kind]
    return f"--set \"{section}.{key}=['{name}']\"" if kind in LISTS else f"--set {section}.{key}={name}"


def nearest_name(kind: str, name: str) -> str:
    """Return the end of an error message: what a strategy is called here, the nearest name, or all of the kind."""
    meant = spelt(name, names(kind)) or strategy_called(kind, name)
    return f": did you mean {meant!r}?" if meant in names(kind) else nearest(name, names(kind))


def nearest_task(name: str) -> str:
    """Return the end of an error message: what a task is called here, all that there are, and how to write one."""
    said = nearest_name("task", name)
    listed = f" There are {', '.join(names('task'))}" if said.endswith("?") else ""
    return f"{said}{listed}; one of your own is a class in one file (docs/your-own-strategy.md)"


def find(kind: str, name: str) -> type[Any]:
    """Find the class behind a name.

    Raises:
        InputError: there is none; the message has the nearest name.
    """
    folder, base = FOLDERS[kind][0], named(FOLDERS[kind][1])
    if is_code(name):
        try:
            found = load(name)
        except Exception as error:  # whatever a user's module raises
            raise InputError(f"{kind} = {name!r} cannot be imported: {type(error).__name__}: {error}") from error
        if not (inspect.isclass(found) and issubclass(found, base)) or inspect.isabstract(found):
            raise InputError(f"{kind} = {name!r} is not a complete subclass of hellora's {base.__name__}")
        return found
    check_name(kind, name)
    module = importlib.import_module(f"{folder}.{name}")
    (strategy,) = [c for _, c in inspect.getmembers(module, inspect.isclass) if is_defined_in(c, module, base)]
    return strategy


def is_defined_in(found: type, module: Any, base: type) -> bool:
    return issubclass(found, base) and found.__module__ == module.__name__


def named(place: str) -> Any:
    """Import what "module:Class" names in hellora."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def summary(kind: str, name: str) -> str:
    """Return the first line of the docstring of a strategy."""
    if is_code(name):
        return (inspect.getdoc(find(kind, name)) or "").partition("\n")[0]
    check_name(kind, name)
    return outline(f"{FOLDERS[kind][0]}.{name}", base=base_of(kind)).summary


def settings_of(kind: str, name: str) -> list[str]:
    """Return the names of the settings of a strategy, in order.

    Raises:
        InputError: there is no such strategy.
    """
    if is_code(name):
        return [field.name for field in fields(find(kind, name))]
    check_name(kind, name)
    return list(outline(f"{FOLDERS[kind][0]}.{name}", base=base_of(kind)).defaults)


def file_of(kind: str, name: str) -> str:
    """Return the name of the file that a strategy is in, under which an experiment knows it."""
    return str(find(kind, name).__module__).rpartition(".")[2] if is_code(name) else name


def base_of(kind: str) -> str:
    return FOLDERS[kind][1].partition(":")[2]
