"""The registry is the folder: `allocator = "geometric"` means allocators/geometric.py. `"mine.py:Mine"` is a user's
own class (`own_code`)."""

import importlib
import inspect
import pkgutil
from typing import Any

from hellora.core.errors import InputError, nearest
from hellora.data.partitioning import Partitioner
from hellora.experiments.own_code import is_code, load
from hellora.methods.strategies import (
    Aggregator,
    Allocator,
    Dispatcher,
    LocalTraining,
    Sampler,
    ServerOptimizer,
)
from hellora.tasks import Task

FOLDERS: dict[str, tuple[str, type]] = {
    "sampler": ("hellora.methods.samplers", Sampler),
    "allocator": ("hellora.methods.allocators", Allocator),
    "dispatcher": ("hellora.methods.dispatchers", Dispatcher),
    "local_training": ("hellora.methods.local_training", LocalTraining),
    "aggregator": ("hellora.methods.aggregators", Aggregator),
    "server_optimizer": ("hellora.methods.server_optimizers", ServerOptimizer),
    "task": ("hellora.tasks", Task),
    "partitioner": ("hellora.data.partitioners", Partitioner),
}


def names(kind: str) -> list[str]:
    """Return the registered names of a kind, sorted."""
    package = importlib.import_module(FOLDERS[kind][0])
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def heading(kind: str) -> str:
    """Return the kind in words, as a list of its names is headed: that of its folder, such as "local training"."""
    return FOLDERS[kind][0].rpartition(".")[2].replace("_", " ")


def find(kind: str, name: str) -> type[Any]:
    """Find the class behind a name.

    Raises:
        InputError: there is none; the message has the nearest name.
    """
    folder, base = FOLDERS[kind]
    if is_code(name):
        try:
            found = load(name)
        except Exception as error:  # whatever a user's module raises
            raise InputError(f"{kind} = {name!r} cannot be imported: {type(error).__name__}: {error}") from error
        if not (inspect.isclass(found) and issubclass(found, base)) or inspect.isabstract(found):
            raise InputError(f"{kind} = {name!r} is not a complete subclass of hellora's {base.__name__}")
        return found
    if name not in names(kind):
        raise InputError(f"there is no {kind} {name!r}{nearest(name, names(kind))}")
    module = importlib.import_module(f"{folder}.{name}")
    (strategy,) = [c for _, c in inspect.getmembers(module, inspect.isclass) if is_defined_in(c, module, base)]
    return strategy


def is_defined_in(found: type, module: Any, base: type) -> bool:
    return issubclass(found, base) and found.__module__ == module.__name__


def summary(kind: str, name: str) -> str:
    """Return the first line of the docstring of a strategy."""
    return (inspect.getdoc(find(kind, name)) or "").partition("\n")[0]
