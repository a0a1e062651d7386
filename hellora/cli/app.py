"""The command line. Heavy imports wait until a command needs them, so that --help answers at once."""

import shlex
import sys
from collections.abc import Collection
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from click.core import ParameterSource
from rich.table import Table

from hellora.cli import adapter as adapter_commands
from hellora.cli import federation as federation_commands
from hellora.cli import report as report_commands
from hellora.cli.errors import Commands, run_command, sources, with_examples
from hellora.core.errors import InputError
from hellora.core.version import __version__
from hellora.runs.terminal import default_folder, plain_console, quieten

if TYPE_CHECKING:
    from hellora.budgets.planner import Estimate
    from hellora.core.types import Budget, Ranks
    from hellora.experiments.tables import Table as Settings

app = typer.Typer(cls=Commands, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None)

Source = Annotated[
    str,
    typer.Argument(
        metavar="PRESET_OR_FILE", help="a preset's name, or an experiment file (TOML)", autocompletion=sources
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="change a setting, such as train.lr=1e-3; repeat"),
]


@app.callback(invoke_without_command=True, epilog="\b\nExample:\n  hellora run quickstart")
def hellora(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Fine-tune one model with LoRA across clients that cannot all afford the same training."""
    if version:
        print(f"hellora {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def run(
    source: Source,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="the run's folder [default: runs/NAME]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in the folder")] = False,
    backend: Annotated[str, typer.Option(metavar="local|flower", help="what trains the clients here")] = "local",
    federation: federation_commands.Federation = None,
    certificate: federation_commands.Certificate = None,
    insecure: federation_commands.Insecure = False,
) -> None:
    """Run an experiment; the results go to its folder.

    With --federation it runs at a server, and the clients that are connected there train.
    """
    quieten()
    if backend not in ("local", "flower"):
        raise InputError(f"--backend {backend!r}: it is local or flower")
    if federation is None and (certificate is not None or insecure):
        raise InputError("--certificate and --insecure are for a run with --federation HOST:PORT")
    if federation is not None:
        if backend != "local":
            raise InputError("--federation and --backend exclude each other: give one")
        federation_commands.run_at_server(source, overrides or [], out, resume, federation, certificate, insecure)
        return
    if backend == "flower":
        federation_commands.run_simulated(source, overrides or [], out, resume)
        return
    from hellora.core.units import in_bytes
    from hellora.experiments.config import read_experiment
    from hellora.experiments.overrides import parse_settings
    from hellora.runs.progress import TerminalProgress, shown
    from hellora.runs.run import run_experiment

    experiment = read_experiment(source, parse_settings(overrides or ()))
    folder = out or default_folder(experiment.name, resume)
    console = plain_console()
    try:
        with TerminalProgress(console) as progress:
            summary = run_experiment(experiment, folder, progress, resume)
    except KeyboardInterrupt:
        changes = [part for text in overrides or () for part in ("--set", text)]
        again = shlex.join(["hellora", "run", source, *changes, "--out", str(folder), "--resume"])
        console.print(f"stopped; go on with: {again}", highlight=False)
        raise typer.Exit(130) from None
    console.print(
        f"{'done':>9}  {shown(summary['final'])}  up {in_bytes(summary['uplink_bytes'])}, "
        f"down {in_bytes(summary['downlink_bytes'])} in all  {summary['seconds']:.0f} s",
        highlight=False,
    )
    for rank, metrics in summary.get("prototypes", {}).items():
        console.print(f"{f'rank {rank}':>9}  {shown(metrics)}", highlight=False)
    if "ensemble" in summary:
        console.print(f"{'ensemble':>9}  {shown(summary['ensemble'])}", highlight=False)
    console.print(f"adapter: {folder / 'adapter'} (its README shows how to use it)", highlight=False)


@app.command()
def plan(
    context: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="PRESET_OR_FILE", help="whose rounds to plan; or name a --model", autocompletion=sources
        ),
    ] = None,
    overrides: Overrides = None,
    round: Annotated[int, typer.Option(help="which round")] = 0,
    model: Annotated[str | None, typer.Option(help="hub id or folder: plan for one client with a budget")] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="its memory, such as 6GiB")] = None,
    seconds: Annotated[float | None, typer.Option(help="its time per round; needs --speed")] = None,
    uplink: Annotated[str | None, typer.Option(metavar="SIZE", help="what it can send per round")] = None,
    speed: Annotated[float | None, typer.Option(help="operations per second of its device, such as 5e11")] = None,
    examples: Annotated[int | None, typer.Option(help="it trains on per round [default: one batch]")] = None,
    batch: Annotated[int, typer.Option(help="examples in a step")] = 16,
    tokens: Annotated[int | None, typer.Option(help="of an example [default: the task's limit]")] = None,
    rank: Annotated[int, typer.Option(help="of the adapter")] = 16,
    dtype: Annotated[str, typer.Option(help="of the base weights")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto: whose kernels to assume")] = "auto",
    measure: Annotated[bool, typer.Option("--measure", help="load the weights and run a few steps here")] = False,
) -> None:
    """Show who would train what, or what a budget allows.

    For an experiment: who would train which layers in a round. With --model: what one client can train within its
    memory, time and uplink.
    """
    quieten()
    if (source is None) == (model is None):
        raise InputError("plan: name a preset or experiment file, or a --model with its --memory, not both")
    if source is not None:
        if given := given_options(context, but=("source", "overrides", "round")):
            raise InputError(f"plan: --{given[0]} is of a plan with --model: for {source} write --set SECTION.KEY=…")
        plan_of_round(source, overrides, round)
        return
    if given_options(context, but=[name for name in context.params if name != "round"]):
        raise InputError("plan: --round is of an experiment's plan: leave it out, or --model")
    from hellora.experiments.config import override
    from hellora.experiments.overrides import parse_settings

    fleet = {"memory": memory, "seconds": seconds, "uplink": uplink, "speed": speed}
    table = {
        "model": {"name": model, "rank": rank, "dtype": dtype},
        "fleet": {name: [value] for name, value in fleet.items() if value is not None},
        "train": {"batch_size": batch},
        "compute": {"device": device},
    }
    plan_of_budget(
        override(table, parse_settings(overrides or ())), batch if examples is None else examples, tokens, measure
    )


def given_options(context: typer.Context, but: Collection[str]) -> list[str]:
    """The parameters that are on the command line, less some."""
    return [
        name
        for name in context.params
        if name not in but and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]


def plan_of_round(source: str, overrides: list[str] | None, round: int) -> None:
    """Print a round's allocation."""
    from hellora.experiments.config import read_experiment
    from hellora.experiments.overrides import parse_settings
    from hellora.experiments.planning import plan as plan_round
    from hellora.methods.demands import LAYER_SCORES_REPORTED, PROXY_DATA, RANKS_PRUNED, RANKS_REPORTED

    experiment = read_experiment(source, parse_settings(overrides or ()))
    federation, allocation = plan_round(experiment, round)
    spec = federation.spec
    table = Table(title=f"round {round}: trained rank per client and layer ({spec.num_layers} layers, 0 to the left)")
    table.add_column("client", justify="right")
    table.add_column("layers", justify="right")
    table.add_column("allocation")
    if federation.planner is not None:
        for name in ("budget", "policy", "peak"):
            table.add_column(name, justify="right")
    for client, ranks in zip(allocation.clients, allocation.ranks, strict=True):
        profile = federation.fleet[client]
        capacity = profile.budget.capacity(spec.num_layers)
        row = [str(client), f"{(ranks > 0).sum()} of {capacity}", ranks_in_words(ranks)]
        if federation.planner is not None:
            row += estimate_in_words(
                profile.budget, federation.planner.estimate(profile, ranks) if ranks.any() else None
            )
        table.add_row(*row)
    console = plain_console()
    console.print(table)
    demands = federation.method.allocator.demands
    if demands.needs & {PROXY_DATA, LAYER_SCORES_REPORTED}:
        console.print(
            "Layer scores need weights and data. Here all layers score alike, so this is the pattern without scores."
        )
    reported = any(RANKS_REPORTED in rule.demands.promises for rule in federation.method.local_training)
    if RANKS_PRUNED in demands.promises and reported and round:
        console.print("To what rank clients prune themselves, only training shows. Here all train up to their budget.")


def ranks_in_words(ranks: "Ranks") -> str:
    """The ranks of all layers, the shallowest to the left; a dot is a frozen layer."""
    return " ".join(f"{rank:>2}" if rank else " ·" for rank in ranks.tolist())


def estimate_in_words(budget: "Budget", estimate: "Estimate | None") -> list[str]:
    """Budget, policy and predicted peak."""
    from hellora.budgets.planner import in_words
    from hellora.core.units import in_bytes

    if estimate is None:
        return [in_words(budget), "–", "–"]
    return [in_words(budget), estimate.policy.in_words, in_bytes(estimate.cost.peak_bytes)]


def plan_of_budget(table: "Settings", examples: int, tokens: int | None, measure: bool) -> None:
    """Print what one client can train within its budget."""
    from hellora.budgets.planner import in_words
    from hellora.core.units import in_bytes
    from hellora.experiments.budget_plan import measure as measure_plan
    from hellora.experiments.budget_plan import plan_budget

    console = plain_console()
    found = plan_budget(table, examples, tokens)
    measured = measure_plan(found) if measure else {}
    spec = found.planner.model.spec
    headings = ["", "layers", f"ranks of layers 0 … {spec.num_layers - 1}", "policy", "peak", "up", "time"]
    headings += ["measured peak", "error", "operations/s"] if measure else []
    shown = Table(*headings, title=f"{found.experiment.model.name}, {in_words(found.client.budget)}")
    for choice in found.choices:
        if choice.estimate is None:
            shown.add_row(choice.name, "0", "nothing of this pattern fits", *[""] * (len(headings) - 3))
            continue
        cost, took = choice.estimate.cost, choice.estimate.seconds
        row = [choice.name, str((choice.ranks > 0).sum()), shortened(choice.ranks), choice.estimate.policy.in_words]
        row += [in_bytes(cost.peak_bytes), in_bytes(cost.uplink_bytes)]
        row += [
            f"{found.relative_time(choice.ranks, choice.estimate.policy):.2f} ×" if took is None else f"{took:.3g} s"
        ]
        if measure:
            real = measured[choice.name]
            peak = real.peak_bytes
            row += ["–", "–"] if peak is None else [in_bytes(peak), f"{cost.peak_bytes / peak - 1:+.1%}"]
            row += [f"{real.speed:.3g}"]
        shown.add_row(*row)
    console.print(shown)
    for line in found.assumptions:
        console.print(line, highlight=False)


def shortened(ranks: "Ranks") -> str:
    """Runs of equal ranks: "·×24 16×8"."""
    runs = [(rank, len(list(same))) for rank, same in groupby(ranks.tolist())]
    return " ".join(f"{rank or '·'}" + (f"×{count}" if count > 1 else "") for rank, count in runs)


@app.command()
def compare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="a comparison (TOML), or the preset or experiment to compare methods on",
            autocompletion=sources,
        ),
    ],
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", metavar="NAME=SECTION.KEY=VALUE,…", help="a method, or NAME=preset=PRESET"),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--setting", metavar="NAME=SECTION.KEY=VALUE,…", help="a setting to compare in")
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="SEED,…", help="of the runs [default: 0,1,2]")] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option(metavar="SECTION.KEY=VALUE,…", help="values to try for every method, on a validation split"),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="uplink|BYTES", help="compare at equal uplink: the least of all, or so much")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE,…", help="compare at equal memory: of each group of clients")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="the comparison's folder [default: runs/compare-NAME]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the comparison in the folder")] = False,
) -> None:
    """Compare methods over seeds, with 95 % intervals.

    Each method is run in each setting with each seed; a table says what came of it.
    """
    quieten()
    from hellora.comparing.plan import parse_grid, parse_named, read_comparison
    from hellora.comparing.run import run_comparison
    from hellora.comparing.table import on_screen
    from hellora.experiments.overrides import parse_settings, parse_value

    changes = {
        "experiment": parse_settings(overrides or ()),
        "methods": parse_named("--method", methods or ()),
        "settings": parse_named("--setting", settings or ()),
        "tune": {"grid": parse_grid(tune)} if tune else {},
    }
    single = {
        "seeds": [parse_value(seed.strip()) for seed in seeds.split(",")] if seeds is not None else None,
        "budget": budget and parse_value(budget),
        "memory": [size.strip() for size in memory.split(",")] if memory is not None else None,
    }
    comparison = read_comparison(source, changes | {key: value for key, value in single.items() if value is not None})
    folder = out or default_folder(f"compare-{Path(source).stem}", resume)
    console = plain_console()
    cells = len(comparison.cells)
    sizes = {"setting": comparison.settings, "method": comparison.methods, "seed": comparison.seeds}
    console.print(
        " × ".join(f"{len(names)} {what}{'s' * (len(names) > 1)}" for what, names in sizes.items())
        + f" = {cells} runs{f', after {comparison.tuning_runs} to tune' if comparison.tune else ''} → {folder}",
        highlight=False,
    )
    try:
        result = run_comparison(comparison, folder, lambda line: console.print(line, highlight=False), resume)
    except KeyboardInterrupt:
        again = shlex.join(["hellora", "compare", str(folder / "comparison.toml"), "--out", str(folder), "--resume"])
        console.print(f"stopped; go on with: {again}", highlight=False)
        raise typer.Exit(130) from None
    for table in on_screen(result.rows):
        console.print(table)
    for note in result.notes:
        console.print(note, highlight=False)
    console.print(f"table: {folder / 'table.md'}, also as .csv and .json", highlight=False)
    if result.failed:
        console.print(f"{len(result.failed)} of {cells} runs failed; --resume tries them again", highlight=False)
        raise typer.Exit(1)


app.add_typer(adapter_commands.app)
app.add_typer(federation_commands.app)
app.add_typer(report_commands.app)


@app.command("list")
def list_() -> None:
    """List methods, tasks, partitioners and presets."""
    quieten()
    from hellora.experiments import registry
    from hellora.experiments.config import preset_summaries

    console = plain_console()
    for kind in registry.FOLDERS:
        console.print(f"\n{kind}s", style="bold")
        for name in registry.names(kind):
            console.print(f"  {name:<28}{registry.summary(kind, name)}", highlight=False)
    console.print("\npresets", style="bold")
    for name, lines in preset_summaries().items():
        for label, line in zip([name] + [""] * len(lines), lines, strict=False):
            console.print(f"  {label:<28}{line}", highlight=False)


with_examples((app, adapter_commands.app, federation_commands.app, report_commands.app))


def main() -> None:
    """The `hellora` command: 0 done, 1 the run had to stop, 2 the input is wrong."""
    sys.path.insert(0, "")  # a strategy "my_module:Mine" may lie in the working directory
    sys.exit(run_command(app))
