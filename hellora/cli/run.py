"""`hellora run` runs an experiment on this machine, on Flower's simulation, or at a server whose clients train."""

import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hellora.cli.arguments import Allow, Federation, Overrides, Source
from hellora.cli.ending import Lines, resumable
from hellora.core.errors import InputError, RunError
from hellora.runs.terminal import default_folder, plain_console, quieten

if TYPE_CHECKING:
    from hellora.experiments.experiment import Experiment

app = typer.Typer(rich_markup_mode=None)


@app.command()
def run(
    source: Source,
    overrides: Overrides = None,
    allow: Allow = None,
    out: Annotated[Path | None, typer.Option(help="the run's folder [default: runs/NAME]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in the folder")] = False,
    from_round: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="with --resume: go back to before round N, of the last kept")
    ] = None,
    backend: Annotated[str, typer.Option(metavar="local|flower", help="what trains the clients here")] = "local",
    federation: Federation = None,
) -> None:
    """Run an experiment; the results go to its folder.

    With --federation it runs at a server of this machine, and the clients that are connected there train.
    """
    quieten()
    if backend not in ("local", "flower"):
        raise InputError(f"--backend {backend!r}: it is local or flower")
    if from_round is not None and not resume:
        raise InputError("--from-round goes back in a run that is there: give --resume, too")
    if federation is not None:
        if backend != "local":
            raise InputError("--federation and --backend exclude each other: give one")
        run_at_server(source, overrides or [], allow or [], out, resume, from_round, federation)
    elif backend == "flower":
        run_simulated(source, overrides or [], allow or [], out, resume, from_round)
    else:
        run_here(source, overrides or [], allow or [], out, resume, from_round)


def run_here(
    source: str, overrides: list[str], allow: list[str], out: Path | None, resume: bool, from_round: int | None
) -> None:
    """Run on the in-process loop or on worker processes."""
    from hellora.experiments.config import read_experiment
    from hellora.experiments.overrides import parse_settings

    experiment = read_experiment(source, parse_settings(overrides), allow=allow)
    from hellora.runs.progress import TerminalProgress  # after what may be wrong: these import torch
    from hellora.runs.run import run_experiment

    folder = out or default_folder(experiment.name, resume)
    console = plain_console()
    again = [*command(source, overrides, allow), "--out", str(folder), "--resume"]
    with resumable(again, lambda line: console.print(line, highlight=False)), TerminalProgress(console) as progress:
        summary = run_experiment(experiment, folder, progress, resume, from_round=from_round)
    for line in outcome(summary):
        console.print(line, highlight=False)
    console.print(f"adapter: {folder / 'adapter'} (its README shows how to use it)", highlight=False)


def outcome(summary: Mapping[str, Any]) -> list[str]:
    """Say what came of a run, and at what cost, with a line more for each of its prototypes, and for their ensemble."""
    from hellora.core.units import in_bytes
    from hellora.runs.progress import shown

    lines = [
        f"{'done':>9}  {shown(summary['final'])}  up {in_bytes(summary['uplink_bytes'])}, "
        f"down {in_bytes(summary['downlink_bytes'])} in all  {summary['seconds']:.0f} s"
    ]
    for rank, metrics in summary.get("prototypes", {}).items():
        lines.append(f"{f'rank {rank}':>9}  {shown(metrics)}")
    if "ensemble" in summary:
        lines.append(f"{'ensemble':>9}  {shown(summary['ensemble'])}")
    return lines


def run_at_server(
    source: str,
    overrides: list[str],
    allow: list[str],
    out: Path | None,
    resume: bool,
    from_round: int | None,
    federation: Path,
) -> None:
    """Run at a server (`--federation`), and show what it tells."""
    from hellora.deployment.federated_run import Submission, run_at
    from hellora.experiments.config import read_experiment
    from hellora.experiments.overrides import parse_settings

    experiment = read_experiment(source, parse_settings(overrides), simulated=False, allow=allow)
    if out is not None and (out.is_absolute() or ".." in out.parts or out == Path()):
        raise InputError(f"--out {out}: with --federation it is a name below the server's folder of runs")
    name = str(out or experiment.name)
    submission = Submission(experiment.name, experiment.table, name, resume, simulation=False, from_round=from_round)
    again = [*command(source, overrides, allow), "--federation", str(federation), "--out", name, "--resume"]
    followed(
        lambda say: run_at(federation, submission, say),
        f"{experiment.name} → {name} at {federation}",
        again,
        f"adapter: {name}/adapter in the server's folder of runs",
    )


def run_simulated(
    source: str, overrides: list[str], allow: list[str], out: Path | None, resume: bool, from_round: int | None
) -> None:
    """Run on Flower's simulation (`--backend flower`), and show what it tells."""
    from hellora.deployment.federated_run import Submission, simulate
    from hellora.experiments.config import read_experiment
    from hellora.experiments.overrides import parse_settings

    experiment = read_experiment(source, parse_settings(overrides), allow=allow)
    folder = out or default_folder(experiment.name, resume)
    submission = Submission(
        experiment.name, experiment.table, str(folder.resolve()), resume, simulation=True, from_round=from_round
    )
    again = [*command(source, overrides, allow), "--backend", "flower", "--out", str(folder), "--resume"]
    followed(
        lambda say: simulate(submission, engine_settings(experiment), folder.parent, say),
        f"{experiment.name} → {folder} on Flower's simulation",
        again,
        f"adapter: {folder / 'adapter'} (its README shows how to use it)",
    )


def engine_settings(experiment: "Experiment") -> dict[str, float]:
    """Make what Flower's simulation is told: all clients, as many processes as workers, and what devices each may use.

    Where RAY_ADDRESS names a cluster of Ray, it has the resources that its machines were started with.
    """
    import torch

    from hellora.experiments.machine import workers
    from hellora.experiments.prepare import read_data

    compute, processes = experiment.compute, workers(experiment)
    if experiment.natural is not None:
        experiment, _ = read_data(experiment)
    devices = 0 if compute.device == "cpu" else torch.cuda.device_count()
    settings = {
        "num-supernodes": experiment.data.num_clients,
        "client-resources-num-cpus": 1,
        "client-resources-num-gpus": float(devices and min(1.0, devices / processes)),
        "init-args-log-to-driver": False,
    }
    own = {"init-args-num-cpus": processes, "init-args-num-gpus": devices}
    return settings if "RAY_ADDRESS" in os.environ else settings | own


def followed(run: Callable[[Lines], None], title: str, again: list[str], done: str) -> None:
    """Run, say where the result is, or how to go on where it had to stop, and pass on how it ended."""
    say = Lines()
    say(title)
    with resumable(again, say):
        try:
            run(say)
        except RunError:
            say(f"go on with: {shlex.join(again)}")
            raise
    say(done)


def command(source: str, overrides: list[str], allow: list[str]) -> list[str]:
    """Return the command line that began a run, less where it goes."""
    words = [part for text in overrides for part in ("--set", text)]
    return ["hellora", "run", source, *words, *(part for code in allow for part in ("--allow", code))]
