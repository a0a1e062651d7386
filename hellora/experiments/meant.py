"""Say what somebody means who wrote something else, and in which line of which file it is written."""

import re
import tomllib
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hellora.core.errors import InputError, nearest
from hellora.experiments import registry
from hellora.experiments.elsewhere import presets_called
from hellora.experiments.presets import presets
from hellora.experiments.sections import SECTIONS, defaults_of

HEADING = re.compile(r"\s*\[\s*([\w.-]+)\s*\]")  # of a table in a TOML file
ASSIGNMENT = re.compile(r"\s*([\w.-]+)\s*=")
SETTING = re.compile(r"(?:unknown setting )?([\w-]+(?:\.[\w-]+)?)(?:: (\w+))?")  # with which a message begins


def instead_of(section: str, value: Any) -> str:
    """Say what to write where a value stands in the place of a section."""
    usual = f"write [{section}] and its settings below it, or --set {section}.KEY=…"
    if not isinstance(value, str):
        return usual
    if "name" in defaults_of(SECTIONS[section]):
        return f"write [{section}] and its settings below it, or --set {section}.name={value}"
    named = [(kind, word) for kind, word in registry.strategies_called(value) if registry.KEYS[kind][0] == section]
    said = [registry.said_on_the_command_line(kind, word) for kind, word in named]
    said += [f"hellora run {preset}" for preset in presets_called(value)]
    return f"write {' or '.join(said)}" if said else usual


def preset_meant(source: str) -> str:
    """Return the end of an error message: the presets that a name means, or the strategy that it is, or the nearest."""
    if meant := presets_called(source):
        return f": did you mean {' or '.join(map(repr, meant))}?"
    if strategies := registry.strategies_called(source):
        said = " or ".join(registry.said_on_the_command_line(kind, name) for kind, name in strategies)
        return f": did you mean hellora run quickstart {said}?"
    return nearest(source, presets())


# ---------------------------------------------------------------------------------------------------------- where it is


@contextmanager
def placed(source: str, changes: Container[str]) -> Iterator[None]:
    """Let an error of an experiment begin with the file and the line of the setting that it is about, where that is
    known: a setting in `changes` is in no file."""
    try:
        yield
    except InputError as error:
        place = place_of(str(error), source, changes)
        if place is None:
            raise
        raise InputError(f"{place}: {error}") from error


def place_of(message: str, source: str, changes: Container[str]) -> str | None:
    """Find the line of the setting with which a message begins, in a file or in those that it is based on."""
    found = SETTING.match(message)
    names = [] if found is None else [f"{found[1]}.{found[2]}", found[1]]
    if any(name in changes for name in names):
        return None
    seen: list[str] = []
    while source not in seen and source not in presets():
        seen.append(source)
        with suppress(OSError, ValueError, AttributeError):
            text = Path(source).read_text(encoding="utf-8")
            lines = lines_of(text)
            if line := next((lines[name] for name in names if name in lines), None):
                return f"{source}, line {line}"
            source = str(tomllib.loads(text).get("base", source))
    return None


def lines_of(text: str) -> dict[str, int]:
    """Return the line of each setting and table of a TOML file, from 1."""
    table, lines = "", dict[str, int]()
    for number, line in enumerate(text.splitlines(), start=1):
        if heading := HEADING.match(line):
            table = f"{heading[1]}."
            lines.setdefault(heading[1], number)
        elif assignment := ASSIGNMENT.match(line):
            lines.setdefault(f"{table}{assignment[1]}", number)
    return lines
