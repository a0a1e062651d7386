"""The commands around Flower: certificates, server, client, and runs at a server or on its simulation."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hellora.core.errors import InputError, RunError
from hellora.runs.terminal import default_folder, plain_console, quieten

app = typer.Typer(rich_markup_mode=None)

Federation = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="the `hellora server` whose clients train; --out is a name there"),
]
Certificate = Annotated[Path | None, typer.Option(metavar="FILE", help="the server's ca.crt")]
Insecure = Annotated[bool, typer.Option("--insecure", help="plain text, and no keys: only on a machine of your own")]


@app.command()
def certificates(
    folder: Annotated[Path, typer.Argument(help="where to put them; a new folder, or one to add clients to")],
    hosts: Annotated[
        list[str] | None, typer.Option("--host", metavar="NAME", help="of the server, as clients reach it; repeat")
    ] = None,
    clients: Annotated[
        list[str] | None, typer.Option("--client", metavar="NAME", help="to make a key pair for; repeat")
    ] = None,
) -> None:
    """Make keys and certificates for a federation, for trials.

    That is a certificate authority, the server's certificate, and a key pair per client. Nothing is overwritten.
    """
    quieten()
    from hellora.deployment.certificates import make

    made = make(folder, hosts or [], clients or [])
    say = plain_console()
    if made.new_authority:
        say.print(f"server: keep {folder} there; ca.key and server.key leave it never", highlight=False)
        say.print(f"every client, and whoever submits runs: a copy of {folder / 'ca.crt'}", highlight=False)
    for name in made.clients:
        say.print(
            f"{name}: move {folder / 'clients' / name} there; its .pub file stays with the server", highlight=False
        )
    say.print("For trials: whoever made these keys has seen them all, and nobody can call one back.", highlight=False)


@app.command()
def server(
    folder: Annotated[Path, typer.Argument(help="of the server's own state; made where there is none")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="to listen on")] = 8443,
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 for all networks")] = "127.0.0.1",
    certificates: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="made by `hellora certificates`; clients/*.pub are admitted")
    ] = None,
    runs: Annotated[Path, typer.Option(help="folder of the runs' results")] = Path("runs"),
    insecure: Insecure = False,
) -> None:
    """Keep a server for clients on other machines.

    It is Flower's SuperLink, with TLS, and every client known by its key. Ctrl-C ends it.
    """
    quieten()
    from hellora.deployment.flower_tools import program
    from hellora.deployment.server_process import Server
    from hellora.deployment.supervision import ending_on_signals

    program("flower-superlink")
    if (certificates is None) != insecure:
        raise InputError(
            "--insecure and --certificates exclude each other: give one"
            if insecure
            else "server: needs --certificates FOLDER (see `hellora certificates`), or --insecure for plain text"
        )
    say = Lines()
    if insecure:
        say("INSECURE: plain text, and whoever reaches the port can take part, read and command everything")
    if host == "127.0.0.1":
        say("only this machine can reach 127.0.0.1; for others: --host 0.0.0.0, behind a firewall (docs/deploy.md)")
    with ending_on_signals():
        try:
            Server(folder, host, port, certificates, runs).run(say)
        except KeyboardInterrupt:
            say("stopped")
            raise typer.Exit(0) from None


@app.command()
def client(
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="where `hellora server` listens")],
    name: Annotated[str, typer.Option(help="as the server shows it")],
    data: Annotated[str, typer.Option(help="its own examples: a file, a folder or a hub id")],
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="its private key: clients/NAME")] = None,
    certificate: Certificate = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="data.KEY=VALUE", help="such as data.text=body; repeat")
    ] = None,
    memory: Annotated[str, typer.Option(metavar="auto|none|SIZE", help="that training may take")] = "auto",
    layers: Annotated[int | None, typer.Option(help="that it trains at most")] = None,
    rank: Annotated[int | None, typer.Option(help="that it trains at most")] = None,
    uplink: Annotated[str | None, typer.Option(metavar="SIZE", help="that it sends per round at most")] = None,
    seconds: Annotated[float | None, typer.Option(help="that a round may take it")] = None,
    speed: Annotated[float | None, typer.Option(help="operations per second, such as 5e11")] = None,
    link: Annotated[str | None, typer.Option(metavar="SIZE", help="bytes per second of its network")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    model: Annotated[Path | None, typer.Option(metavar="FOLDER", help="where the base model lies here")] = None,
    folder: Annotated[Path | None, typer.Option(help="of its own state [default: clients/NAME]")] = None,
    insecure: Insecure = False,
) -> None:
    """Take part in a server's runs with this machine's data.

    The data never leaves this machine. Ctrl-C ends it.
    """
    quieten()
    from hellora.deployment.client_process import Client, budget_settings, data_settings
    from hellora.deployment.flower_tools import Address, program
    from hellora.deployment.supervision import ending_on_signals

    program("flower-supernode")
    address = Address.parse(server, "--server", certificate, insecure)
    check_client(name, key, insecure)
    if model is not None and not (model / "config.json").is_file():
        raise InputError(f"--model: {model} has no config.json: give the folder of a model")
    me = Client(
        address,
        name,
        key,
        data_settings(data, settings or []),
        budget_settings(memory, layers, rank, uplink, seconds, speed, link),
        device,
        model,
        folder or Path("clients") / name,
    )
    say = Lines()
    with ending_on_signals():
        try:
            me.run(say)
        except KeyboardInterrupt:
            say(f"{name}: stopped")
            raise typer.Exit(0) from None


def check_client(name: str, key: Path | None, insecure: bool) -> None:
    """Raises InputError where a client cannot prove who it is."""
    from hellora.deployment.certificates import NAME, check_private_key

    if not NAME.fullmatch(name):
        raise InputError(f"--name {name!r}: a name has letters, digits and . _ - only, such as 'hospital'")
    if key is not None:
        if insecure:
            raise InputError("--key: an insecure server asks for none: leave it out, or leave out --insecure")
        check_private_key(key, "--key")
    elif not insecure:
        raise InputError("client: needs --key, the private key that `hellora certificates` made for it")


# -------------------------------------------------------------------------------------------- ways of `hellora run`


def run_at_server(
    source: str,
    overrides: list[str],
    out: Path | None,
    resume: bool,
    federation: str,
    certificate: Path | None,
    insecure: bool,
) -> None:
    """`hellora run --federation`."""
    from hellora.deployment.federated_run import Submission, run_at
    from hellora.deployment.flower_tools import Address
    from hellora.experiments.config import read_experiment
    from hellora.experiments.overrides import parse_settings

    address = Address.parse(federation, "--federation", certificate, insecure)
    experiment = read_experiment(source, parse_settings(overrides), simulated=False)
    if out is not None and (out.is_absolute() or ".." in out.parts or out == Path()):
        raise InputError(f"--out {out}: with --federation it is a name below the server's folder of runs")
    name = str(out or experiment.name)
    submission = Submission(experiment.name, experiment.table, name, resume, simulation=False)
    trust = ["--insecure"] if insecure else ["--certificate", str(certificate)]
    again = [*command(source, overrides), "--federation", federation, *trust, "--out", name, "--resume"]
    followed(
        lambda say: run_at(address, submission, say),
        f"{experiment.name} → {name} at {address}",
        again,
        f"adapter: {name}/adapter in the server's folder of runs",
    )


def run_simulated(source: str, overrides: list[str], out: Path | None, resume: bool) -> None:
    """`hellora run --backend flower`."""
    from hellora.deployment.federated_run import Submission, simulate
    from hellora.experiments.config import read_experiment
    from hellora.experiments.overrides import parse_settings

    experiment = read_experiment(source, parse_settings(overrides))
    folder = out or default_folder(experiment.name, resume)
    submission = Submission(experiment.name, experiment.table, str(folder.resolve()), resume, simulation=True)
    again = [*command(source, overrides), "--backend", "flower", "--out", str(folder), "--resume"]
    followed(
        lambda say: simulate(submission, engine_settings(experiment), folder.parent, say),
        f"{experiment.name} → {folder} on Flower's simulation",
        again,
        f"adapter: {folder / 'adapter'} (its README shows how to use it)",
    )


def engine_settings(experiment: Any) -> dict[str, float]:
    """What Flower's simulation is told: all clients, as many processes as workers, and what devices each may use.

    Where RAY_ADDRESS names a cluster of Ray, it has the resources that its machines were started with.
    """
    import torch

    compute = experiment.compute
    devices = 0 if compute.device == "cpu" else torch.cuda.device_count()
    settings = {
        "num-supernodes": experiment.data.clients,
        "client-resources-num-cpus": 1,
        "client-resources-num-gpus": float(devices and min(1.0, devices / compute.workers)),
        "init-args-log-to-driver": False,
    }
    own = {"init-args-num-cpus": compute.workers, "init-args-num-gpus": devices}
    return settings if "RAY_ADDRESS" in os.environ else settings | own


def followed(run: Callable[["Lines"], None], title: str, again: list[str], done: str) -> None:
    """Run, say where the result is, or how to go on where it had to stop, and pass on how it ended."""
    from hellora.deployment.supervision import ending_on_signals

    say = Lines()
    say(title)
    with ending_on_signals():
        try:
            run(say)
        except KeyboardInterrupt:
            say(f"stopped; go on with: {shlex.join(again)}")
            raise typer.Exit(130) from None
        except RunError:
            say(f"go on with: {shlex.join(again)}")
            raise
    say(done)


def command(source: str, overrides: list[str]) -> list[str]:
    return ["hellora", "run", source, *(part for text in overrides for part in ("--set", text))]


class Lines:
    """Prints lines as they are, and at once."""

    def __call__(self, line: str) -> None:
        print(line, flush=True)
