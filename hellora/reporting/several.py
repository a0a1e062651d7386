"""One page shows several runs: those that differ only in their seed are one line, with its 95 % interval."""

import math
import tomllib
from collections.abc import Container, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from hellora.comparing.statistics import CLIENTS_OWN, Cell, Row, Run, rows_of
from hellora.comparing.table import cell_text, footnotes, headings
from hellora.core.errors import InputError
from hellora.core.metrics import SHARES, in_words
from hellora.reporting.charts import FEW, Bars, bar_chart, lying_bars
from hellora.reporting.parts import Page, Section, Table, View, missing
from hellora.reporting.quality import byte_unit, compared_quality
from hellora.reporting.record import RunRecord, read_run

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
    runs = [run for groups in by_setting.values() for each in groups.values() for run in each]
    ended = [run for run in runs if run.summary is not None]
    rows = rows_of_groups(by_setting)
    sections: list[Section] = []
    for setting, groups in by_setting.items():
        sections += [at_the_end(setting, [row for row in rows if row.setting == setting]), *curves(setting, groups)]
    notes = footnotes(rows) if rows else []
    if len(ended) < len(runs):
        notes.append("Runs that have not ended are in the curves, once they have finished a round, but not at the end.")
    facts = [
        ("runs", f"{len(runs)}, {len(ended)} of them ended"),
        ("compared", ", ".join(dict.fromkeys(name for groups in by_setting.values() for name in groups))),
        *([("settings", ", ".join(by_setting))] if len(by_setting) > 1 else []),
        ("seeds", ", ".join(map(str, sorted({run.table["seed"] for run in runs})))),
    ]
    return Page("Comparison", facts, sections, notes, ended=len(ended) == len(runs))


def named(id: str, title: str, setting: str) -> tuple[str, str]:
    """Return the id and title of a section, in its setting where there are any."""
    return (f"{id}-{setting}", f"{title} in {setting}") if setting else (id, title)


def curves(setting: str, groups: Groups) -> list[Section]:
    """Show the runs' main metrics, and the loss on the way."""
    metrics = dict.fromkeys([*(run.metric for runs in groups.values() for run in runs), "loss"])
    titles = {metric: in_words(metric)[0].upper() + in_words(metric)[1:] for metric in metrics}
    return [compared_quality(*named(metric, titles[metric], setting), metric, groups) for metric in metrics]


def rows_of_groups(by_setting: Settings) -> list[Row]:
    """Make a row of the comparison's table for each group that has runs that ended."""
    return rows_of(
        {
            Cell(setting, method, int(run.table["seed"])): Run(run.summary, run.lines)
            for setting, groups in by_setting.items()
            for method, runs in groups.items()
            for run in runs
            if run.summary is not None
        }
    )


def at_the_end(setting: str, rows: Sequence[Row]) -> Section:
    """Show the rows of one setting as a table, and its columns as bars with intervals."""
    id, title = named("end", "At the end", setting)
    if not rows:
        return missing(id, title, "None of these runs has ended.")
    columns = headings(rows)
    shown = [[row.method, *(cell_text(row, name) for name in columns)] for row in rows]
    table = Table(["runs", *columns.values()], shown)
    views = [
        View("seconds" if name == "seconds" else heading, bars_of(name, heading, rows), table)
        for name, heading in columns.items()
        if name != "rounds" and any(name in row.values for row in rows)
    ]
    return Section(
        id, title, "The last round of runs that have ended: means over seeds, with 95 % intervals.", views, wide=True
    )


def bars_of(name: str, heading: str, rows: Sequence[Row]) -> Any:
    """Show a column of the comparison's table as bars with intervals."""
    shown = [row for row in rows if name in row.values]
    found = [row.values[name] for row in shown]
    size, unit = (1, heading)
    if name.endswith("_bytes"):
        size, unit = byte_unit(max(each.mean for each in found))
    methods = [row.method + " †" * (row.evaluated_on == CLIENTS_OWN) for row in shown]
    halves = [None if each.half is None else each.half / size for each in found]
    is_share = name in SHARES or name == "worst_client" or (name.startswith("group ") and shown[0].metric in SHARES)
    within = (0.0, 1.0 if is_share else math.inf)
    bars = Bars(heading, methods, [each.mean / size for each in found], halves, within)
    return lying_bars(bars, unit) if len(methods) > FEW else bar_chart([bars], "", unit)
