"""The catalogue has all that an experiment can name, and what is known of each: read from sources and presets, so that
nothing waits for torch."""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hellora.core.errors import InputError
from hellora.experiments import registry
from hellora.experiments.config import own_table, whole_table
from hellora.experiments.elsewhere import presets_called, spelt
from hellora.experiments.outlines import Outline, outline, place
from hellora.experiments.own_code import NAMING
from hellora.experiments.presets import preset_summaries, presets
from hellora.experiments.sections import SECTIONS, TOP, default_of, named_in
from hellora.experiments.tables import Table, settings_of

PRESET, TABLE = "preset", "table"
KINDS = (TABLE, *registry.FOLDERS, PRESET)
TABLES = {"top": TOP, **SECTIONS}  # of an experiment file, and what holds the settings of each
MOST_PRESETS = 12  # that use a strategy, and are named


@dataclass(frozen=True)
class Setting:
    """One setting: its whole key, its value or default as it is written in a file, what it takes and what it means."""

    key: str
    value: str
    takes: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class Entry:
    """An entry of the catalogue is what `hellora show` says of a name."""

    title: str
    text: Sequence[str]  # paragraphs
    facts: Sequence[tuple[str, str]]  # a label, and what it says
    settings: Sequence[Setting]


def heading(kind: str) -> str:
    """Return what the names of a kind are headed with, such as "server optimizers"."""
    return f"{kind}s" if kind in (PRESET, TABLE) else registry.heading(kind)


def names(kind: str) -> list[str]:
    if kind == TABLE:
        return list(TABLES)
    return presets() if kind == PRESET else registry.names(kind)


def summaries(kind: str) -> dict[str, list[str]]:
    """Return the names of a kind, each with the lines that sum it up."""
    if kind == PRESET:
        return preset_summaries()
    if kind == TABLE:
        return {name: [outline_of(name).summary] for name in TABLES}
    return {name: [registry.summary(kind, name)] for name in registry.names(kind)}


def kind_called(word: str) -> str:
    """Find the kind that a person means by "allocators", "allocator" or "server-optimizers".

    Raises:
        InputError: there is none; the message has all.
    """
    said = word.lower().replace("-", " ").replace("_", " ")
    for kind in KINDS:
        if said in (kind.replace("_", " "), heading(kind)):
            return kind
    listed = ", ".join(heading(kind).replace(" ", "_") for kind in reversed(KINDS))
    raise InputError(f"there is no kind {word!r}: choose among {listed}")


def entry(name: str, kind: str | None = None) -> Entry:
    """Describe a preset, else a strategy of any kind, else a table; of a name of several kinds, the one that is asked
    for.

    Raises:
        InputError: nothing is called that; the message has the nearest names.
    """
    word = name.strip("[]")
    spellings = {each: spelt(word, names(each)) for each in (PRESET, *registry.FOLDERS, TABLE) if kind in (None, each)}
    found = {each: spelling for each, spelling in spellings.items() if spelling is not None}
    if not found:
        raise InputError(f"there is no {'name' if kind is None else kind} {name!r}{near(word.lower(), kind)}")
    (first, ours), *more = found.items()
    described = described_as(first, ours)
    others = [("see also", f"hellora show {other_name} --kind {other}") for other, other_name in more]
    return Entry(described.title, described.text, [*described.facts, *others], described.settings)


def described_as(kind: str, name: str) -> Entry:
    if kind == TABLE:
        return of_table(name)
    return of_preset(name) if kind == PRESET else of_strategy(kind, name)


def near(word: str, kind: str | None) -> str:
    """Return the end of an error message: the nearest names, or where all are."""
    known = sorted({each for one in KINDS if kind in (None, one) for each in names(one)})
    meant = [each for one, each in registry.strategies_called(word) if kind in (None, one)]
    meant += presets_called(word) if kind in (None, PRESET) else ()
    close = list(dict.fromkeys(meant)) or difflib.get_close_matches(word, known, n=3)
    if close:
        return f": did you mean {' or '.join(map(repr, close))}?"
    return f": `hellora list{'' if kind is None else f' {kind}'}` has them all"


# ------------------------------------------------------------------------------------------------------------ of a name


def of_preset(name: str) -> Entry:
    """Describe a preset by the comments that open its file, and by what it changes of its base."""
    table = own_table(name)
    base = table.pop("base", None)
    page = page_of_preset(name)
    facts = [("run it", f"hellora run {name}")]
    facts += [("based on", f"{base}, which has all other settings (hellora show {base})")] if base else []
    facts += [("docs", page)] if page else []
    settings = [Setting(key, json.dumps(value)) for key, value in settings_of(table).items()]
    return Entry(f"{name} (preset)", paragraphs(preset_summaries()[name]), facts, settings)


def paragraphs(lines: Sequence[str]) -> list[str]:
    """Fill the comments of a preset: its idea is a line; assumptions, failures and notes may take several."""
    first, *others = lines
    parts = re.split(r"\n(?=Assumes: |Fails: )", "\n".join(others)) if others else []
    return [first, *(" ".join(part.split()) for part in parts)]


def page_of_preset(name: str) -> str:
    """Find the page of a preset, or of the one that it is based on."""
    while not (page := page_called(name)) and name in presets():
        name = own_table(name).get("base", "")
    return page


def of_strategy(kind: str, name: str) -> Entry:
    """Describe a strategy by what its class and its file say of it, and by the presets that name it."""
    found = outline(f"{registry.FOLDERS[kind][0]}.{name}", base=registry.base_of(kind))
    section = registry.KEYS[kind][0]
    users, page = presets_with(kind, name), page_of_strategy(kind, name, list(found.defaults))
    facts = [("use it", registry.said_on_the_command_line(kind, name))]
    many = f"{len(users)} of the {len(presets())} presets"
    facts += [("used by", many if len(users) > MOST_PRESETS else ", ".join(users))] if users else []
    facts += [("docs", page)] if page else []
    texts = [" ".join(part.split()) for part in (found.text, found.about)]
    return Entry(f"{name} ({kind.replace('_', ' ')})", texts, facts, list(settings(found, section)))


def of_table(name: str) -> Entry:
    """Describe a table of an experiment file, and say which of its keys name strategies."""
    found, section = outline_of(name), "" if name == "top" else name
    kinds = [kind.replace("_", " ") for (owner, _), kind in NAMING.items() if owner == section]
    facts = [("besides", f"the settings of the {', '.join(kinds)} that it names: hellora list")] if kinds else []
    title = f"[{section}] (table)" if section else "the top of an experiment file"
    text = [" ".join(part.split()) for part in found.text.split("\n\n")]
    return Entry(title, text, [*facts, ("docs", "docs/settings.md")], list(settings(found, section)))


def outline_of(table: str) -> Outline:
    module, _, name = TABLES[table].partition(":")
    return outline(module, name)


def settings(found: Outline, section: str) -> Iterator[Setting]:
    """Yield the settings of a class with their defaults, and what they take and mean."""
    dot = f"{section}." if section else ""
    for key, default in found.defaults.items():
        value = "needed" if key in found.needed else "not set" if default is None else json.dumps(default)
        yield Setting(f"{dot}{key}", value, found.types[key], found.meanings[key])


def presets_with(kind: str, name: str) -> list[str]:
    """Return the presets that use a strategy, whether they name it or it is what is used where nothing is named."""
    return [preset for preset in presets() if name in used(kind, whole_table(preset, ()))]


def used(kind: str, table: Table) -> list[str]:
    section, key = registry.KEYS[kind]
    value: Any = table.get(section, {}).get(key, default_of(section, key))
    return named_in(value)


# ------------------------------------------------------------------------------------------------------------ of a page


def page_called(name: str) -> str:
    return f"docs/methods/{name}.md" if name and folder_of_pages().joinpath(f"{name}.md").is_file() else ""


def page_of_strategy(kind: str, name: str, keys: Sequence[str]) -> str:
    """Find the page that explains a strategy: it links to the strategy's file and has its settings in a table."""
    link = f"(../../{registry.FOLDERS[kind][0].replace('.', '/')}/{name}.py)"
    pages = {page.stem: page.read_text(encoding="utf-8") for page in sorted(folder_of_pages().glob("*.md"))}
    linked = [stem for stem, text in pages.items() if link in text and all(f"| `{key}` |" in text for key in keys)]
    return page_called(name if name in linked else linked[0]) if linked else ""


def folder_of_pages() -> Path:
    """Return where the pages of methods are, beside a package that is used from its repository."""
    return Path(str(place("hellora"))).parent / "docs" / "methods"
