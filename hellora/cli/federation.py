"""These commands make a federation of machines: certificates, server, client."""

from pathlib import Path
from typing import Annotated

import typer

from hellora.cli.arguments import Allow as AllowNamed
from hellora.cli.arguments import Certificate, Insecure
from hellora.cli.ending import until_stopped
from hellora.cli.help import Group
from hellora.core.errors import InputError
from hellora.runs.terminal import Voice, quieten

app = typer.Typer(rich_markup_mode=None)
of_client = typer.Typer(cls=Group, invoke_without_command=True, rich_markup_mode=None)
app.add_typer(of_client, name="client")

Allow = Annotated[
    list[str] | None, typer.Option(metavar="CODE|remote-code", help="code that a server names may run here; repeat")
]
DataSettings = Annotated[
    list[str] | None, typer.Option("--set", metavar="data.KEY=VALUE", help="such as data.text=body; repeat")
]
Columns = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="of its data, that may be read [default: text, label, image, and the usual names of chats and prompts]",
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option("--accept-model", metavar="NAME", help="that a server may name; repeat [default: the first it named]"),
]


@app.command()
def certificates(
    folder: Annotated[Path, typer.Argument(help="where to put them; a new folder, or one to change")],
    hosts: Annotated[
        list[str] | None, typer.Option("--host", metavar="NAME", help="of the server, as clients reach it; repeat")
    ] = None,
    clients: Annotated[
        list[str] | None, typer.Option("--client", metavar="NAME", help="to make a key pair for; repeat")
    ] = None,
    renewed: Annotated[bool, typer.Option("--renew", help="the server's certificate, by the same CA")] = False,
    revoked: Annotated[
        list[str] | None, typer.Option("--revoke", metavar="NAME", help="a client, whom servers shut out; repeat")
    ] = None,
) -> None:
    """Make keys and certificates of a federation, or renew them.

    That is a certificate authority, the server's certificate, and a key pair per client. A server that runs takes up
    what changes.
    """
    quieten()
    from hellora.deployment.certificates import make

    say = Voice()
    if renewed or revoked:
        change(folder, hosts or [], clients or [], renewed, revoked or [], say)
        return
    made = make(folder, hosts or [], clients or [])
    warn_of_keys(say, *folder.glob("*.key"))
    if made.new_authority:
        say(f"server: keep {folder} there; ca.key and server.key leave it never")
        say(f"every client: a copy of {folder / 'ca.crt'}")
    for name in made.clients:
        say(f"{name}: move {folder / 'clients' / name} there; its .pub file stays with the server")
    say("whoever made these keys has seen them all; a client that minds makes its own pair (docs/deploy.md)")


def change(
    folder: Path, hosts: list[str], clients: list[str], renewed: bool, revoked: list[str], say: Voice
) -> None:  # fmt: skip
    """Renew the server's certificate, or revoke clients' keys."""
    from hellora.deployment.renewal import renew, revoke

    if clients or (hosts and not renewed):
        raise InputError("--renew and --revoke change what is there: add clients, and hosts, in a command of their own")
    if revoked:
        revoke(folder, revoked)
        say(f"revoked: {', '.join(revoked)}; a server that runs says so within seconds")
    if renewed:
        days = renew(folder, hosts)
        say(f"renewed for {days} days; a server that runs shows it within seconds, and no client needs a new file")


@app.command()
def server(
    folder: Annotated[Path, typer.Argument(help="of the server's own state; made where there is none")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="for clients")] = 8443,
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 for all networks")] = "127.0.0.1",
    certificates: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="made by `hellora certificates`; clients/*.pub are admitted")
    ] = None,
    runs: Annotated[Path, typer.Option(help="folder of the runs' results")] = Path("runs"),
    health_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="on 127.0.0.1, that says whether all is well")
    ] = None,
    insecure: Insecure = False,
) -> None:
    """Keep a server for clients on other machines.

    It is Flower's SuperLink behind a door, with TLS, that lets clients in, each known by its key, and nobody else. Runs
    are submitted on this machine: `hellora run … --federation FOLDER`. Ctrl-C ends it.
    """
    quieten()
    from hellora.deployment.flower_tools import program
    from hellora.deployment.server_process import Server

    program("flower-superlink")
    if (certificates is None) != insecure:
        raise InputError(
            "--insecure and --certificates exclude each other: give one"
            if insecure
            else "server: needs --certificates FOLDER (see `hellora certificates`), or --insecure for plain text"
        )
    say = Voice()
    if certificates is not None:
        warn_of_keys(say, *certificates.glob("*.key"))
    if insecure:
        say("INSECURE: plain text, and whoever reaches the port can take part and read everything")
    if host == "127.0.0.1":
        say("only this machine can reach 127.0.0.1; for others: --host 0.0.0.0")
    with until_stopped("stopped", say):
        Server(folder, host, port, certificates, runs, health_port).run(say)


@of_client.callback()
def client(
    context: typer.Context,
    server: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="where `hellora server` listens")] = None,
    name: Annotated[str | None, typer.Option(help="as the server shows it")] = None,
    data: Annotated[str | None, typer.Option(help="its own examples: a file, a folder or a hub id")] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="its private key: clients/NAME")] = None,
    certificate: Certificate = None,
    settings: DataSettings = None,
    memory: Annotated[str, typer.Option(metavar="auto|none|SIZE", help="that training may take")] = "auto",
    layers: Annotated[int | None, typer.Option(help="that it trains at most")] = None,
    rank: Annotated[int | None, typer.Option(help="that it trains at most")] = None,
    uplink: Annotated[str | None, typer.Option(metavar="SIZE", help="that it sends per round at most")] = None,
    seconds: Annotated[float | None, typer.Option(help="that a round may take it")] = None,
    speed: Annotated[float | None, typer.Option(help="operations per second, such as 5e11")] = None,
    link: Annotated[str | None, typer.Option(metavar="SIZE", help="bytes per second of its network")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    model: Annotated[Path | None, typer.Option(metavar="FOLDER", help="where the base model lies here")] = None,
    columns: Columns = None,
    models: Models = None,
    max_steps: Annotated[int, typer.Option(help="of a round, that a server may ask for")] = 10_000,
    max_batch: Annotated[int, typer.Option(help="examples of a step, likewise")] = 1024,
    threads: Annotated[int | None, typer.Option(help="CPU threads, likewise [default: all cores]")] = None,
    folder: Annotated[Path | None, typer.Option(help="of its own state [default: clients/NAME]")] = None,
    allow: Allow = None,
    insecure: Insecure = False,
) -> None:
    """Take part in a server's runs with this machine's data.

    The data never leave this machine. Ctrl-C ends it. `hellora client export` writes the model of its own that it has.
    """
    if context.invoked_subcommand is not None:
        return
    quieten()
    from hellora.deployment.client_process import Client, bound_settings, budget_settings, data_settings
    from hellora.deployment.flower_tools import Address, program

    if server is None or name is None or data is None:
        raise InputError("client: needs --server, --name and --data: see `hellora client --help`")
    program("flower-supernode")
    address = Address.parse(server, "--server", certificate, insecure)
    check_client(name, key, model, insecure)
    own_data = data_settings(data, settings or [])
    budget = budget_settings(memory, layers, rank, uplink, seconds, speed, link)
    bounds = bound_settings(columns, models or [], max_steps, max_batch, threads)
    state = folder or Path("clients") / name
    me = Client(address, name, key, own_data, budget, device, model, state, bounds, allow or ())
    say = Voice()
    if key is not None:
        warn_of_keys(say, key)
    with until_stopped(f"{name}: stopped", say):
        me.run(say)


@of_client.command("export")
def export_own_model(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="the client's: clients/NAME, or its --folder")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a new folder")],
    run: Annotated[str | None, typer.Option(metavar="ID", help="of which run [default: the last one]")] = None,
    allow: AllowNamed = None,
) -> None:
    """Write a client's own model as `hellora export` writes a run's.

    That is where `method.head = "local"` or `method.shares` leave it a part of the model: what is shared as it last
    received it, with its own part.
    """
    quieten()
    from hellora.deployment.own_model import export_own

    Voice()(str(export_own(folder, out, run, allow or ())))


def warn_of_keys(say: Voice, *keys: Path) -> None:
    """Say which private keys others can read, before they are used."""
    from hellora.deployment.certificates import exposed

    for warning in exposed(*keys):
        say(warning)


def check_client(name: str, key: Path | None, model: Path | None, insecure: bool) -> None:
    """Raise InputError where a client cannot prove who it is, or its model is not where it says."""
    from hellora.deployment.certificates import NAME, check_private_key

    if not NAME.fullmatch(name):
        raise InputError(f"--name {name!r}: a name has letters, digits and . _ - only, such as 'hospital'")
    if key is not None:
        if insecure:
            raise InputError("--key: an insecure server asks for none: leave it out, or leave out --insecure")
        check_private_key(key, "--key")
    elif not insecure:
        raise InputError("client: needs --key, the private key that `hellora certificates` made for it")
    if model is not None and not (model / "config.json").is_file():
        raise InputError(f"--model: {model} has no config.json: give the folder of a model")
