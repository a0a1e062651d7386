"""Write an experiment as a TOML file in which every setting has its reason beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tomli_w

from hellora.experiments.sections import SECTIONS
from hellora.experiments.tables import Table

SAID = "as you said"  # the reason of what a person chose
WIDTH = 120  # of the longest line with a comment beside its setting; else the comment stands above
COLUMN = 32  # where comments begin, if the setting is not longer


@dataclass
class Draft:
    """A draft of an experiment is its table, as it comes about, and why each setting is as it is."""

    source: str
    table: Table = field(default_factory=dict)
    reasons: dict[tuple[str, str], tuple[Any, str]] = field(default_factory=dict)  # of a setting: its value, and why
    below: dict[str, str] = field(default_factory=dict)  # a comment at the end of a table
    notes: tuple[str, ...] = ()  # on what was read
    about: str = ""  # the comment at the top

    def add(self, section: str, key: str, value: Any, why: str = "") -> None:
        """Set a setting; the section of those at the top is ""."""
        owner = self.table.setdefault(section, {}) if section else self.table
        owner[key] = value
        self.reasons[section, key] = (value, why)

    def reason(self, section: str, key: str) -> str:
        """Say why a setting is as it is; "" where nothing is to be said."""
        value = self.table.get(section, {}).get(key) if section else self.table.get(key)
        known, why = self.reasons.get((section, key), (None, ""))
        return why if known == value else SAID

    def to_toml(self) -> str:
        """Write the file, tables in their usual order."""
        top = {key: value for key, value in self.table.items() if key not in SECTIONS}
        parts = [[f"# {line}" for line in self.about.splitlines()] + self.lines("", top)]
        filled = [section for section in SECTIONS if self.table.get(section)]
        parts += [[f"[{section}]", *self.lines(section, self.table[section])] for section in filled]
        return "\n\n".join("\n".join(lines) for lines in parts) + "\n"

    def lines(self, section: str, content: Mapping[str, Any]) -> list[str]:
        """Write the settings of a table, a line each; the reason of one that was changed since is left out."""
        written = []
        for key, value in content.items():
            line, why = f"{key} = {as_toml(value)}", " ".join(self.reason(section, key).split())
            beside = f"{line:<{COLUMN - 1}} # {why}"
            written += [line] if not why else [beside] if len(beside) <= WIDTH else [f"# {why}", line]
        return [*written, *([f"# {self.below[section]}"] if section in self.below else [])]


def as_toml(value: Any) -> str:
    """Write a value in one line."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    return tomli_w.dumps({"value": value}).strip().removeprefix("value = ")
