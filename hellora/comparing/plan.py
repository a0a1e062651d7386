"""A comparison is methods × settings × seeds on one base experiment, checked before anything runs.

base = "quickstart"                  a preset or an experiment file; [experiment] changes it, or is it all
seeds = [0, 1, 2]
[methods.NAME]                       "section.key" = value; preset = "…" lays another one's method over the base
[settings.NAME]                      "section.key" = value
[tune]                               grid = {"train.lr" = […]}, tried for every method alike on a validation split;
                                     settings = ["NAME"]: in these, for all
sweep = {"data.alpha" = [1, 0.1]}    values of a setting in their order, each a setting to compare in
target = 0.8                         of the main metric: what it costs to reach it
budget = "uplink"                    or a number of bytes: runs count up to equal uplink
ridge_head = true                    with the frozen network and a head in closed form as a method, too
memory = ["2GiB", "6GiB"]            every method with these groups of clients, in place of layers and ranks
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import tomli_w

from hellora.comparing.runs import Cell
from hellora.comparing.statistics import HEAD_ALONE
from hellora.comparing.sweep import swept_settings
from hellora.core.errors import InputError
from hellora.experiments.config import as_written, check, own_table, settled_task, whole_table
from hellora.experiments.own_code import named_code
from hellora.experiments.presets import presets
from hellora.experiments.sections import SECTIONS, defaults_of, override
from hellora.experiments.tables import Table, build, field_names, plain, settings_of

if TYPE_CHECKING:
    from hellora.experiments.experiment import Experiment

CARRIED = ("method", "server", "train")  # of a preset, what is its method's and not its data's
NAME = re.compile(r"\w[\w.+-]*")


@dataclass(frozen=True)
class Tuning:
    """The [tune] table has one grid for every method, scored on a part of the training data that no run trains on."""

    grid: dict[str, tuple[Any, ...]]
    validation: float = 0.1  # part of the training data that is held out, in tuning runs and all others
    seeds: tuple[int, ...] = ()  # () = the first seed that the comparison began with
    settings: tuple[str, ...] = ()  # in which the grid is tried, for all of them together; () = in each, for itself

    def __post_init__(self) -> None:
        if not self.grid or not all(self.grid.values()):
            raise ValueError('grid must name settings and the values to try, such as {"train.lr" = [1e-3, 1e-2]}')
        if not 0 < self.validation < 1:
            raise ValueError(f"validation must be between 0 and 1, not {self.validation}")

    def points(self) -> list[Table]:
        """Return every combination of the grid's values, as settings."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]


@dataclass(frozen=True)
class Comparison:
    """A comparison holds what is compared; `experiment` is the whole table that every cell stands on."""

    experiment: Table
    methods: dict[str, Table] = field(default_factory=dict)
    settings: dict[str, Table] = field(default_factory=lambda: {"base": {}})
    seeds: tuple[int, ...] = (0, 1, 2)
    sweep: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # its settings are among `settings`
    target: float | None = None  # of the main metric; None = what it costs to reach one is not asked
    budget: str | int | float | None = None  # "uplink", or bytes of uplink for each run; None = runs count whole
    memory: tuple[str, ...] = ()  # of the clients of each group, the same for every method; () = as methods say
    tune: Tuning | None = None

    def __post_init__(self) -> None:
        if not self.methods:
            raise InputError("there is no method to compare: give --method NAME=SECTION.KEY=VALUE or [methods.NAME]")
        if not self.settings:
            raise InputError("settings is empty: leave it out to compare in the base's setting")
        for name in (*self.methods, *self.settings):
            if not NAME.fullmatch(name):
                raise InputError(f"{name!r} must also name a folder: use letters, digits, and . _ + - inside")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds must be one or more, each once, not {list(self.seeds)}")
        if self.tune and (unknown := set(self.tune.settings) - self.settings.keys()):
            raise InputError(f"tune.settings: {sorted(unknown)[0]!r} is none of {', '.join(self.settings)}: correct it")
        if self.budget not in (None, "uplink") and (isinstance(self.budget, str | bool | float) or self.budget < 1):
            raise InputError(f"budget must be 'uplink' or a whole number of bytes, not {self.budget!r}")
        if self.target is not None and self.budget is not None:
            raise InputError("target asks what whole runs cost, and budget cuts runs short: keep one of them")

    @property
    def cells(self) -> list[Cell]:
        """Order the runs seed by seed, so that what an interrupted comparison has can be compared."""
        return [Cell(s, m, seed) for seed, s, m in product(self.seeds, self.settings, self.methods)]

    @property
    def points(self) -> list[Table]:
        """Return what tuning chooses among, for each method in each setting."""
        return self.tune.points() if self.tune else [{}]

    @property
    def tuning_cells(self) -> list[Cell]:
        """Return the runs of each point of the grid."""
        seeds = (self.tune.seeds or self.seeds[:1]) if self.tune else ()
        tried = [name for names in self.tuned_together for name in names]
        return [Cell(s, m, seed) for s, m, seed in product(tried, self.methods, seeds)]

    @property
    def tuned_together(self) -> list[tuple[str, ...]]:
        """Return the settings in which the grid is tried, those together for which one point is chosen."""
        together = self.tune.settings if self.tune else ()
        return [together] if together else [(name,) for name in self.settings]

    @property
    def tuning_runs(self) -> int:
        return len(self.tuning_cells) * len(self.points)

    def with_tuning_seeds(self, begun: Sequence[int] = ()) -> "Comparison":
        """Write out the seeds of the tuning: its own, else those `begun` with, else the comparison's first."""
        if self.tune is None or self.tune.seeds:
            return self
        return replace(self, tune=replace(self.tune, seeds=tuple(begun) or self.seeds[:1]))

    def of(self, cell: Cell, point: Table, evaluate_on: str = "test") -> "Experiment":
        """Make a cell's experiment: the base; over it the method's preset, the setting, the method, the tuned values.

        Raises:
            InputError: it is not valid.
        """
        method, setting = settings_of(self.methods[cell.method]), settings_of(self.settings[cell.setting])
        preset = method.pop("preset", None)
        ours: Table = {"seed": cell.seed}
        if self.tune:
            ours |= {"data.validation": self.tune.validation, "data.evaluate_on": evaluate_on}
        if self.memory:
            ours |= {"fleet.memory": list(self.memory), "fleet.layers": [], "fleet.ranks": []}
        last = {**point, **ours}
        try:
            twice = [key for key, count in Counter([*method, *setting, *point, *ours]).items() if count > 1]
            if twice:
                raise InputError(
                    f"{twice[0]} is set more than once (by the method, the setting, [tune], memory or seeds)"
                )
            table = self.experiment
            for changes in (parts_of(preset), setting, method, last):
                table = override(table, changes)
            if isinstance(fleet := table.get("fleet"), dict):
                table = {**table, "fleet": of_all_groups(fleet)}
            return check(f"{cell.method}, {cell.setting}, seed {cell.seed}", table)
        except InputError as error:
            raise InputError(f"method {cell.method}, setting {cell.setting}: {error}") from error

    def check(self) -> None:
        """Raise InputError unless every run that can come is a valid experiment."""
        for point in self.points:
            for cell in self.cells:
                self.of(cell, point)
            for cell in self.tuning_cells:
                self.of(cell, point, "validation")

    def to_toml(self) -> str:
        """Write the comparison as TOML, its base written out."""
        values = plain(asdict(self))
        return tomli_w.dumps({**values, "tune": plain(values["tune"])} if self.tune else values)


def of_all_groups(fleet: Table) -> Table:
    """Give every group of clients the same where a setting that has a value for each has a single one: methods may have
    other groups, and a sweep is of numbers.
    """
    names = [name for name, default in defaults_of(SECTIONS["fleet"]).items() if isinstance(default, tuple)]
    groups = max((len(fleet[name]) for name in names if isinstance(fleet.get(name), list)), default=0) or 1
    single = {name: fleet[name] for name in names if isinstance(fleet.get(name), int | float | str)}
    return {**fleet, **{name: [value] * groups for name, value in single.items()}}


def parts_of(preset: Any, read: Callable[[str], Table] = as_written) -> Table:
    """Return those settings of a preset or file that are its method's; what code it names was looked at before."""
    if preset is None:
        return {}
    if not isinstance(preset, str):
        raise InputError(f"preset must be the name of a preset or file, not {preset!r}")
    chain = [read(preset)]
    while isinstance(base := chain[-1].get("base"), str) and "base" in (below := read(base)):
        chain.append(below)  # a preset on another method's preset is that method too
    table: Table = {}
    for changes in reversed(chain):
        table = override(table, settings_of({name: part for name, part in changes.items() if name in CARRIED}))
    return settings_of(table)


def with_swept(settings: Table, sweep: Table) -> Table:
    """Add the settings of a sweep to the others."""
    swept = {name: changes for of_key in swept_settings(sweep).values() for name, changes in of_key.items()}
    for name in settings.keys() & swept.keys():
        if settings[name] != swept[name]:
            raise InputError(f"settings.{name} has the name of a value of the sweep: give it another name")
    return {**settings, **swept}


def read_comparison(source: str, changes: Mapping[str, Any], allow: Collection[str] = ()) -> Comparison:
    """Read a comparison from a TOML file, a preset or an experiment file, with `changes` of the same form laid over it.

    `allow` is code that the file, and those that it stands on, may name; what `changes` name is allowed.

    Raises:
        InputError: the comparison, or any run of it, is not valid, or names code that is not allowed.
    """
    known, allowed = {*field_names(Comparison), HEAD_ALONE}, {*allow, *named_code(changes)}
    table = own_table(source, allowed)
    if known.isdisjoint(table):  # an experiment
        table = {"base": source}
    for key in ("experiment", "methods", "settings", "sweep", "tune"):
        if not isinstance(table.setdefault(key, {}), dict):
            raise InputError(f"{key} must be a table: write [{key}] and what is in it below")
        table[key] = {**table[key], **changes.get(key, {})}
    table |= {key: value for key, value in changes.items() if not isinstance(value, dict)}
    base, tune = table.pop("base", None), table.pop("tune")
    if not (base is None or isinstance(base, str)):
        raise InputError(f"base must be the name of a preset or file, not {base!r}")
    below = {} if base is None else whole_table(base, allowed)
    table["experiment"], _ = settled_task(below, settings_of(table["experiment"]), base in presets())
    table["sweep"] = settings_of(table["sweep"])
    table["settings"] = with_swept(table["settings"], table["sweep"])
    if not table["settings"]:
        del table["settings"]
    if (alone := table.pop(HEAD_ALONE, False)) not in (True, False):
        raise InputError(f"{HEAD_ALONE} must be true or false, not {alone!r}")
    if alone:
        table["methods"] = {**table["methods"], HEAD_ALONE: {"preset": HEAD_ALONE}}
    comparison: Comparison = build(Comparison, table, "", sorted({*known, "base"}))
    if tune:
        if isinstance(tune.get("grid"), dict):
            tune["grid"] = settings_of(tune["grid"])
        comparison = replace(comparison, tune=build(Tuning, tune, "tune", sorted(field_names(Tuning))))
    for method in comparison.methods.values():
        parts_of(method.get("preset"), lambda preset: own_table(preset, allowed))
    comparison.check()
    return comparison
