"""Floor 5: the command line. Heavy imports wait until a command needs them, so that --help answers at once."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from hellora.errors import HelloraError, InputError

app = typer.Typer(add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

Source = Annotated[str, typer.Argument(metavar="PRESET_OR_FILE", help="a preset's name, or an experiment file (TOML)")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="change a setting; may be repeated")
]


@app.callback()
def hellora() -> None:
    """Fine-tune one model with LoRA across clients that cannot all afford the same training."""


@app.command()
def run(
    source: Source,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="the run's folder [default: runs/NAME]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in the folder")] = False,
) -> None:
    """Run an experiment: progress here, results in the run's folder."""
    quieten()
    from hellora.config import parse_settings, read_experiment
    from hellora.progress import TerminalProgress, in_bytes, shown
    from hellora.runs import run_experiment

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
    source: Source,
    overrides: Overrides = None,
    round: Annotated[int, typer.Option(help="which round")] = 0,
) -> None:
    """Print who would train which layers in a round, without loading weights or data."""
    quieten()
    from hellora.config import parse_settings, read_experiment
    from hellora.experiment import plan as plan_round

    experiment = read_experiment(source, parse_settings(overrides or ()))
    federation, allocation = plan_round(experiment, round)
    spec = federation.spec
    table = Table(title=f"round {round}: trained rank per client and layer ({spec.num_layers} layers, 0 to the left)")
    table.add_column("client", justify="right")
    table.add_column("layers", justify="right")
    table.add_column("allocation")
    for client, ranks in zip(allocation.clients, allocation.ranks.tolist(), strict=True):
        capacity = federation.fleet[client].budget.capacity(spec.num_layers)
        cells = " ".join(f"{rank:>2}" if rank else " ·" for rank in ranks)
        table.add_row(str(client), f"{sum(map(bool, ranks))} of {capacity}", cells)
    console = plain_console()
    console.print(table)
    if federation.method.allocator.needs_proxy or federation.method.allocator.needs_reports:
        console.print(
            "Layer scores need weights and data. Here all layers score alike, so this is the pattern without scores."
        )


@app.command("list")
def list_() -> None:
    """List methods, tasks, partitioners and presets, one line each."""
    from hellora import registry
    from hellora.config import preset_summaries

    console = plain_console()
    for kind in registry.FOLDERS:
        console.print(f"\n{kind}s", style="bold")
        for name in registry.names(kind):
            console.print(f"  {name:<28}{registry.summary(kind, name)}", highlight=False)
    console.print("\npresets", style="bold")
    for name, lines in preset_summaries().items():
        for label, line in zip([name] + [""] * len(lines), lines, strict=False):
            console.print(f"  {label:<28}{line}", highlight=False)


def default_folder(name: str, resume: bool) -> Path:
    """runs/NAME, or the next free runs/NAME-2, -3 …; to resume, the latest that exists."""
    candidates = [Path("runs") / (name if n == 1 else f"{name}-{n}") for n in range(1, 10_000)]
    free = next(n for n, folder in enumerate(candidates) if not folder.exists())
    return candidates[max(0, free - 1)] if resume else candidates[free]


def plain_console() -> Console:
    """Brackets and colons in names and reasons are text, not markup."""
    return Console(soft_wrap=True, markup=False, emoji=False)


def quieten() -> None:
    """Keep libraries' notes out of our output, and waiting threads off cores that somebody else needs."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def main() -> None:
    """The `hellora` command: 0 done, 1 the run had to stop, 2 the input is wrong."""
    sys.path.insert(0, "")  # a strategy "my_module:Mine" may lie in the working directory
    try:
        app()
    except HelloraError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


if __name__ == "__main__":
    main()
