"""`hellora run` runs an experiment on this machine, on Flower's simulation, or at a server whose clients train."""

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hellora.cli.arguments import Allow, AsJson, Federation, Overrides, Quiet, Source
from hellora.cli.ending import resumable
from hellora.core.errors import InputError, RunError
from hellora.runs.terminal import Voice, default_folder, quieten

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
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run an experiment; the results go to its folder.

    With --federation it runs at a server of this machine, and the clients that are connected there train.
    """
    quieten()
    if backend not in ("local", "flower"):
        raise InputError(f"--backend {backend!r}: it is local or flower")
    if from_round is not None and not resume:
        raise InputError("--from-round goes back in a run that is there: give --resume, too")
    if federation is not None and backend != "local":
        raise InputError("--federation and --backend exclude each other: give one")
    asked = Asked(source, overrides or [], allow or [], out, resume, from_round, Voice(quiet, as_json))
    if federation is not None:
        run_at_server(asked, federation)
    elif backend == "flower":
        run_simulated(asked)
    else:
        run_here(asked)


@dataclass(frozen=True)
class Asked:
    """What the command line asks for, wherever it runs."""

    source: str
    overrides: list[str]
    allow: list[str]
    out: Path | None
    resume: bool
    from_round: int | None
    say: Voice

    def experiment(self, simulated: bool = True) -> "Experiment":
        """Read and check the experiment."""
        from hellora.experiments.config import read_experiment
        from hellora.experiments.overrides import parse_settings

        return read_experiment(self.source, parse_settings(self.overrides), simulated=simulated, allow=self.allow)

    def again(self, *where: str) -> list[str]:
        """Return the command line that goes on with the run."""
        words = [part for text in self.overrides for part in ("--set", text)]
        words += [part for code in self.allow for part in ("--allow", code)]
        return ["hellora", "run", self.source, *words, *where, "--resume"]

    def end(self, folder: str, in_words: str, **more: Any) -> None:
        """Say where the run is."""
        self.say.end(f"adapter: {in_words}", {"run": folder, "adapter": f"{folder}/adapter", **more})


def run_here(asked: Asked) -> None:
    """Run on the in-process loop or on worker processes."""
    experiment = asked.experiment()
    from hellora.runs.progress import TerminalProgress  # after what may be wrong: these import torch
    from hellora.runs.run import run_experiment

    folder, say = asked.out or default_folder(experiment.name, asked.resume), asked.say
    with resumable(asked.again("--out", str(folder)), say.insist), TerminalProgress(say.console) as progress:
        summary = run_experiment(experiment, folder, progress, asked.resume, from_round=asked.from_round)
    for line in outcome(summary):
        say(line, 11)
    asked.end(str(folder), f"{folder / 'adapter'} (its README shows how to use it)", summary=summary)


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


def run_at_server(asked: Asked, federation: Path) -> None:
    """Run at a server (`--federation`), and show what it tells."""
    from hellora.deployment.federated_run import Submission, run_at

    experiment, out = asked.experiment(simulated=False), asked.out
    if out is not None and (out.is_absolute() or ".." in out.parts or out == Path()):
        raise InputError(f"--out {out}: with --federation it is a name below the server's folder of runs")
    name, first = str(out or experiment.name), asked.from_round
    submission = Submission(experiment.name, experiment.table, name, asked.resume, simulation=False, from_round=first)
    again = asked.again("--federation", str(federation), "--out", name)
    asked.say(f"{experiment.name} → {name} at {federation}")
    followed(lambda say: run_at(federation, submission, say), again, asked.say)
    asked.end(name, f"{name}/adapter in the server's folder of runs", federation=str(federation))


def run_simulated(asked: Asked) -> None:
    """Run on Flower's simulation (`--backend flower`), and show what it tells."""
    from hellora.deployment.federated_run import Submission, simulate

    experiment = asked.experiment()
    folder = asked.out or default_folder(experiment.name, asked.resume)
    place, first = str(folder.resolve()), asked.from_round
    submission = Submission(experiment.name, experiment.table, place, asked.resume, simulation=True, from_round=first)
    again = asked.again("--backend", "flower", "--out", str(folder))
    asked.say(f"{experiment.name} → {folder} on Flower's simulation")
    settings = engine_settings(experiment)
    followed(lambda say: simulate(submission, settings, folder.parent, say), again, asked.say)
    asked.end(str(folder), f"{folder / 'adapter'} (its README shows how to use it)")


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


def followed(run: Callable[[Callable[[str], None]], None], again: list[str], say: Voice) -> None:
    """Run, say how to go on where it had to stop, and pass on how it ended."""
    with resumable(again, say.insist):
        try:
            run(say)
        except RunError:
            say.insist(f"go on with: {shlex.join(again)}")
            raise
