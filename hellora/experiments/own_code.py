"""Code that is not hellora's: a class or function of a file, "path/to/file.py:Class", or of a module, "module:Class".

Whoever names code runs it. What a file, a folder or a server names runs only if a person names it, too: with `--allow`,
or with `--set` itself. The working directory is not on Python's path, for a `datasets.py` in it would be taken for the
library.

A file is imported as a module below this one, whose parent package is the file's folder, written in hexadecimal. So it
takes no other module's name, can import its neighbours (`from .near import Near`), and worker processes, which know a
class by its module, find it like any other.
"""

import importlib
import os
import shlex
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from itertools import groupby
from pathlib import Path
from typing import Any

from hellora.core.errors import InputError, nearest

REMOTE_CODE = "remote-code"  # what allows `model.trust_remote_code`
# The keys that name a strategy, and the kind of strategy they name.
NAMING: dict[tuple[str, str], str] = {
    ("task", "name"): "task",
    ("data", "partitioner"): "partitioner",
    ("method", "start"): "start",
    ("method", "sampler"): "sampler",
    ("method", "allocator"): "allocator",
    ("method", "dispatcher"): "dispatcher",
    ("method", "local_training"): "local_training",
    ("method", "aggregator"): "aggregator",
    ("server", "optimizer"): "server_optimizer",
}
TRACKERS = ("tracking", "trackers")
METRICS = ("task", "metrics")
CODE = (*NAMING, TRACKERS, METRICS)  # all keys that may name code
__path__: list[str] = []  # so that there can be modules below


class Folders(MetaPathFinder):
    """Finds the packages below this module: folders, of which Python finds the files by itself."""

    def find_spec(self, fullname: str, path: Any, target: object = None) -> ModuleSpec | None:
        parent, _, folder = fullname.rpartition(".")
        if parent != __name__:
            return None
        found = ModuleSpec(fullname, None, is_package=True)
        found.submodule_search_locations = [os.fsdecode(bytes.fromhex(folder))]
        return found


sys.meta_path.append(Folders())


def is_code(name: str) -> bool:
    """Tell whether a name is of code that is not hellora's."""
    return ":" in name


def load(name: str) -> Any:
    """Import what "path/to/file.py:Class" or "module:Class" names. A relative path begins at the working directory.

    Raises:
        ImportError: there is none; besides, whatever the module raises.
    """
    place, _, attribute = name.rpartition(":")
    if not place.endswith(".py"):
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name == place and Path(f"{place}.py").is_file():
                raise ImportError(f"the working directory is not searched: write {place}.py:{attribute}") from error
            raise
    else:
        file = Path(absolute(place))
        if not file.is_file() or "." in file.stem:
            raise ImportError(f"there is no file {file}" if "." not in file.stem else f"{file.stem} has a dot")
        module = importlib.import_module(f"{__name__}.{os.fsencode(file.parent).hex()}.{file.stem}")
    if not hasattr(module, attribute):
        here = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise ImportError(f"{place} has no {attribute!r}{nearest(attribute, here) if here else ''}")
    return getattr(module, attribute)


def absolute(name: str) -> str:
    """Write a name, or the place in it, with the whole path of its file."""
    place, colon, attribute = name.rpartition(":") if is_code(name) else (name, "", "")
    if place.endswith(".py"):
        place = str(Path(place).expanduser().absolute())
    return f"{place}{colon}{attribute}"


def with_whole_paths(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return an experiment's table in which own files are named from everywhere alike."""

    def written(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [written(each) for each in value]
        return absolute(value) if isinstance(value, str) and is_code(value) else value

    found = dict(table)
    for section, key in CODE:
        if isinstance(content := found.get(section), Mapping) and key in content:
            found[section] = {**content, key: written(content[key])}
    return found


# ------------------------------------------------------------------------------------------------------------- allowing


def named_code(table: Any, path: tuple[str, ...] = ()) -> list[str]:
    """Return the code that a table names, of an experiment, a comparison or settings, however deep: own classes, and
    REMOTE_CODE where a model's may run."""
    if isinstance(table, Mapping):
        return unique(code for key, value in table.items() for code in named_code(value, (*path, *str(key).split("."))))
    if path[-2:] == ("model", "trust_remote_code"):
        return [] if table is False else [REMOTE_CODE]
    if path[-2:] not in CODE:
        return []
    if isinstance(table, list | tuple):
        return unique(code for each in table for code in named_code(each, path))
    return [table] if isinstance(table, str) and is_code(table) else []


def unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def refuse_unnamed_code(table: Any, allowed: Collection[str], source: object, advice: str = "") -> None:
    """Raise InputError where a table names code that is not `allowed`, by its class or by all of its file or module.

    `source` is what the table is in, and `advice` what to do, as the message says it; by default the words to add.
    """
    known = {absolute(words) for words in allowed}
    refused = [code for code in named_code(table) if not {absolute(code), absolute(place_of(code))} & known]
    if refused:
        advice = advice or f"read it first; to let it run, add {shlex.join(allowing(refused))}"
        raise InputError(f"{source} names code that would run here with your rights ({', '.join(refused)}): {advice}")


def place_of(code: str) -> str:
    """Return the file or module of a class."""
    return code.rpartition(":")[0] or code


def allowing(codes: Sequence[str]) -> list[str]:
    """Return the words of a command line that allow this code: of several classes in one place the place."""
    words = []
    for place, group in groupby(sorted(codes, key=place_of), place_of):
        here = list(group)
        words += ["--allow", here[0] if len(here) == 1 else place]
    return words
