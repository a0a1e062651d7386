"""One page shows several runs: those that differ only in their seed are one line, with its 95 % interval."""

import tomllib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from hellora.comparing.runs import Cell, Run
from hellora.comparing.statistics import Row, budgets_of, rows_of
from hellora.comparing.sweep import Sweep
from hellora.comparing.table import footnotes
from hellora.core.errors import InputError
from hellora.core.metrics import in_words
from hellora.reporting.compared import Colours, at_the_end, differences, sweeps
from hellora.reporting.fields import check_numbers, checked
from hellora.reporting.parts import Page, Section
from hellora.reporting.quality import compared_quality
from hellora.reporting.record import RunRecord, blamed, read, read_run

ASIDE = ("seed", "compute", "min_clients", "attempts")  # what does not make a run another one
Groups = Mapping[str, Sequence[RunRecord]]  # by name, those of one setting
Settings = Mapping[str, Mapping[str, Sequence[RunRecord]]]  # setting, then method


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """List the runs that are meant: a comparison's folder stands for all its cells that have begun."""
    found: list[Path] = []
    for path in paths:
        if (path / "comparison.toml").is_file():
            found += cells_of(path)
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def cells_of(comparison: Path) -> list[Path]:
    """List the cells that have begun, settings and methods in the order in which the comparison names them."""
    try:
        table = tomllib.loads((comparison / "comparison.toml").read_text())
        order = [list(table.get(key, {})) for key in ("settings", "methods")]
    except (OSError, ValueError) as error:
        raise InputError(f"{comparison / 'comparison.toml'} cannot be read: {error}") from error
    cells = [file.parent for file in sorted(comparison.glob("cells/*/*/seed-*/experiment.toml"))]
    if not cells:
        raise InputError(f"{comparison}: no run of this comparison has begun")
    settings, methods = ({name: i for i, name in enumerate(names)} for names in order)
    last = len(cells)
    return sorted(
        cells,
        key=lambda cell: (settings.get(cell.parents[1].name, last), methods.get(cell.parent.name, last)),
    )


@dataclass(frozen=True)
class Asked:
    """Tells what was asked of the one comparison that all runs of a page belong to, if there is one."""

    methods: Sequence[str] = ()  # in its order
    target: float | None = None
    budget: str | int | None = None
    sweep: Sweep = field(default_factory=dict)
    notes: Sequence[str] = ()  # of its table


def asked_of(folders: Sequence[Path]) -> Asked:
    """Read what was asked of the comparison that these runs are of; of several, nothing is asked of all.

    Raises:
        InputError: its file is damaged.
    """
    found = {comparison_of(folder) for folder in folders}
    comparison = found.pop() if len(found) == 1 else None
    if comparison is None:
        return Asked()
    file = comparison / "comparison.toml"
    with blamed(file):
        table = tomllib.loads(file.read_text())
        check_numbers({"target": table.get("target")}, "")
        checked(table, {"methods": dict})
        asked = Asked(list(table["methods"]), table.get("target"), table.get("budget"), table.get("sweep", {}))
        checked(asked.sweep, {}, "sweep: ")
    with blamed(comparison / "table.json"):
        saved = read(comparison / "table.json") or {}
        return replace(asked, notes=[str(note) for note in saved.get("notes", [])])


def settings_of(folders: Sequence[Path]) -> Settings:
    """Group the runs by setting and by what they are called within it; each group in the order of its seeds.

    Raises:
        InputError: a folder holds no run, or two hold the same run, which would count twice.
    """
    records = [(folder, read_run(folder)) for folder in folders]
    plain = {folder: settings(record.table) for folder, record in records}
    differing = sorted(
        {key for each in plain.values() for key in each if len({repr(o.get(key)) for o in plain.values()}) > 1}
    )
    comparisons = {folder: comparison_of(folder) for folder in folders}
    several = len(set(comparisons.values()) - {None}) > 1
    keyed: dict[tuple[object, ...], list[tuple[Path, RunRecord]]] = {}
    for folder, record in records:
        cell, comparison = folder.resolve(), comparisons[folder]
        known = ("", *(repr(plain[folder].get(key)) for key in differing))
        key = (cell.parents[1].name, cell.parent.name, comparison) if comparison else known
        keyed.setdefault(key, []).append((folder, record))
    found: dict[str, dict[str, list[RunRecord]]] = {}
    for members in keyed.values():
        runs = [run for _, run in members]
        seeds = [run.table["seed"] for run in runs]
        if len(set(seeds)) < len(seeds):
            names = " and ".join(str(folder) for folder, run in members if seeds.count(run.table["seed"]) > 1)
            raise InputError(f"{names} have the same settings and seed, so they are one run: name one of them")
        folder = members[0][0]
        comparison, setting, method = comparisons[folder], "", described(runs, differing)
        if comparison:
            setting, method = (folder.resolve().parents[i].name for i in (1, 0))
            method += f" of {comparison.name}" * several
        groups = found.setdefault(setting, {})
        groups[unlike(method, groups)] = sorted(runs, key=lambda run: int(run.table["seed"]))
    return found


def comparison_of(folder: Path) -> Path | None:
    """Find the comparison whose run <comparison>/cells/<setting>/<method>/seed-<s> is."""
    parents = folder.resolve().parents
    is_cell = len(parents) > 3 and parents[2].name == "cells" and (parents[3] / "comparison.toml").is_file()
    return parents[3] if is_cell else None


def settings(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a run the one it is: "section.key" with its value."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if key not in ASIDE:
            flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def described(runs: Sequence[RunRecord], differing: Sequence[str]) -> str:
    """Name a group by the settings in which it differs from the others; more than three of them are no name."""
    flat = settings(runs[0].table)
    parts = [f"{key.partition('.')[2] or key} {flat[key]}" for key in differing if key in flat]
    return ", ".join(parts) if parts and len(differing) <= 3 else runs[0].name


def unlike(name: str, taken: Container[str]) -> str:
    """Return the name, or with a number where it is taken."""
    return next(each for n in count(1) if (each := name if n == 1 else f"{name} ({n})") not in taken)


def page_of_several(folders: Sequence[Path]) -> Page:
    """Compare the runs in these folders on a page."""
    by_setting = settings_of(folders)
    asked = asked_of(folders)
    runs = [run for groups in by_setting.values() for each in groups.values() for run in each]
    ended = [run for run in runs if run.summary is not None]
    rows = rows_of_groups(by_setting, asked)
    methods = dict.fromkeys(name for groups in by_setting.values() for name in groups)
    colours = {name: place for place, name in enumerate(dict.fromkeys([*asked.methods, *methods]))}
    sections = [at_the_end(rows, colours), *differences(rows, colours), *sweeps(rows, asked.sweep, colours)]
    for setting, groups in by_setting.items():
        sections += curves(setting, groups, colours)
    notes = footnotes(rows) if rows else []
    notes += [note for note in asked.notes if note not in notes and not note.startswith("not complete")]
    if len(ended) < len(runs):
        notes.append("Runs that have not ended are in the curves, once they have finished a round, but not at the end.")
    facts = [
        ("runs", f"{len(runs)}, {len(ended)} of them ended"),
        ("compared", ", ".join(methods)),
        *([("settings", ", ".join(by_setting))] if len(by_setting) > 1 else []),
        ("seeds", ", ".join(map(str, sorted({run.table["seed"] for run in runs})))),
        *([("target", f"{asked.target:g}")] if asked.target is not None else []),
    ]
    return Page("Comparison", facts, sections, notes, ended=len(ended) == len(runs))


def curves(setting: str, groups: Groups, colours: Colours) -> list[Section]:
    """Show the runs' main metrics, and the loss on the way."""
    found = []
    for metric in dict.fromkeys([*(run.metric for runs in groups.values() for run in runs), "loss"]):
        id, title = metric, in_words(metric)[0].upper() + in_words(metric)[1:]
        if setting:
            id, title = f"{id}-{setting}", f"{title} in {setting}"
        found.append(compared_quality(id, title, metric, groups, colours))
    return found


def rows_of_groups(by_setting: Settings, asked: Asked) -> list[Row]:
    """Make a row of the comparison's table for each group that has runs that ended."""
    runs = {
        Cell(setting, method, int(run.table["seed"])): Run(run.summary, run.lines)
        for setting, groups in by_setting.items()
        for method, members in groups.items()
        for run in members
        if run.summary is not None
    }
    return rows_of(runs, budgets_of(runs, asked.budget), target=asked.target)
