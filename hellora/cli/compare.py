"""`hellora compare` runs methods × settings × seeds, and shows their means with intervals."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hellora.cli.arguments import Allow, AsJson, Overrides, Quiet, sources
from hellora.cli.ending import resumable
from hellora.runs.terminal import Voice, default_folder, quieten

if TYPE_CHECKING:
    from hellora.comparing.plan import Comparison
    from hellora.comparing.results import Result

UNDER = 2  # columns before what goes on below a line
app = typer.Typer(rich_markup_mode=None)

Compared = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="a comparison (TOML), or the preset or experiment to compare methods on",
        autocompletion=sources,
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option("--method", metavar="NAME=SECTION.KEY=VALUE,…", help="a method, or NAME=preset=PRESET"),
]
Settings = Annotated[
    list[str] | None, typer.Option("--setting", metavar="NAME=SECTION.KEY=VALUE,…", help="a setting to compare in")
]
Seeds = Annotated[str | None, typer.Option(metavar="SEED,…", help="of the runs [default: 0,1,2]")]
Tune = Annotated[
    list[str] | None,
    typer.Option(metavar="SECTION.KEY=VALUE,…", help="values to try for every method, on a validation split"),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(metavar="SECTION.KEY=VALUE,…", help="values of a setting, in each of which all are compared"),
]
Target = Annotated[
    str | None, typer.Option(metavar="NUMBER", help="of the main metric: say what it costs each method to reach it")
]
Uplink = Annotated[
    str | None, typer.Option(metavar="uplink|BYTES", help="compare at equal uplink: the least of all, or so much")
]
RidgeHead = Annotated[
    bool, typer.Option("--ridge-head", help="compare with a head in closed form on the frozen network, too")
]
Memory = Annotated[str | None, typer.Option(metavar="SIZE,…", help="compare at equal memory: of each group of clients")]


@app.command()
def compare(
    source: Compared,
    methods: Methods = None,
    settings: Settings = None,
    seeds: Seeds = None,
    sweep: Sweep = None,
    target: Target = None,
    tune: Tune = None,
    budget: Uplink = None,
    memory: Memory = None,
    ridge_head: RidgeHead = False,
    overrides: Overrides = None,
    allow: Allow = None,
    out: Annotated[Path | None, typer.Option(help="the comparison's folder [default: runs/compare-NAME]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the comparison in the folder")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare methods over seeds, with 95 % intervals.

    Each method is run in each setting with each seed; a table says what came of it.
    """
    quieten()
    from hellora.comparing.plan import read_comparison
    from hellora.experiments.own_code import allowing, named_code

    said = changes(
        overrides, methods, settings, seeds, sweep=sweep, target=target, tune=tune, budget=budget, memory=memory,
        ridge_head=ridge_head,
    )  # fmt: skip
    comparison = read_comparison(source, said, allow or ())
    from hellora.comparing.run import run_comparison  # it imports torch, and a wrong name is told without

    folder, say = out or default_folder(f"compare-{Path(source).stem}", resume), Voice(quiet, as_json)
    say(f"{extent(comparison)} → {folder}")
    again = ["hellora", "compare", str(folder / "comparison.toml"), "--out", str(folder), "--resume"]
    again += allowing([*(allow or ()), *named_code(said)])
    with resumable(again, say.insist):
        result = run_comparison(comparison, folder, say.console, resume)
    show(result, folder, len(comparison.cells), say)


def changes(
    overrides: list[str] | None,
    methods: list[str] | None,
    settings: list[str] | None,
    seeds: str | None,
    *,
    sweep: list[str] | None,
    target: str | None,
    tune: list[str] | None,
    budget: str | None,
    memory: str | None,
    ridge_head: bool,
) -> dict[str, Any]:
    """Return what the command line says of a comparison, in the form of its file."""
    from hellora.comparing.options import changes_of, parse_named, parse_values
    from hellora.experiments.overrides import parse_settings, parse_value

    return changes_of(
        parse_settings(overrides or ()),
        parse_named("--method", methods or ()),
        parse_named("--setting", settings or ()),
        parse_values("--tune", tune) if tune else None,
        sweep=parse_values("--sweep", sweep or ()),
        seeds=[parse_value(seed.strip()) for seed in seeds.split(",")] if seeds is not None else None,
        target=target and parse_value(target),
        budget=budget and parse_value(budget),
        memory=[size.strip() for size in memory.split(",")] if memory is not None else None,
        ridge_head=ridge_head,
    )


def extent(comparison: "Comparison") -> str:
    """Say how many runs a comparison has, and of what: "2 settings × 3 methods × 3 seeds = 18 runs"."""
    sizes = {"setting": comparison.settings, "method": comparison.methods, "seed": comparison.seeds}
    factors = [f"{len(names)} {what}{'s' * (len(names) > 1)}" for what, names in sizes.items()]
    before = f", after {comparison.tuning_runs} to tune" if comparison.tune else ""
    return f"{' × '.join(factors)} = {len(comparison.cells)} runs{before}"


def show(result: "Result", folder: Path, runs: int, say: Voice) -> None:
    """Print the tables and their notes, where they are on disk and, with a status of 1, that some runs failed."""
    from hellora.comparing.table import on_screen

    if not say.as_json:
        for table in on_screen(result.rows, say.console):
            say.console.print(table)
        for line in result.notes:
            say(line, UNDER)
    found = json.loads((folder / "table.json").read_text(encoding="utf-8")) if say.as_json else {}
    files = f"table: {folder / 'table.md'}, also as .csv, .json and .tex; figures: {folder / 'figures'}"
    say.end(files, {"comparison": str(folder), "table": found})
    if result.failed:
        say.insist(f"{len(result.failed)} of {runs} runs failed; --resume tries them again")
        raise typer.Exit(1)
