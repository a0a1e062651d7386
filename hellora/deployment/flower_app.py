"""Flower starts two apps: the server's, once per run, and the client's, once per message.

The client's process is short-lived, so it only hands the message to the resident trainer beside it (`trainer.py`); in
Flower's simulation there is none, and the engine's long-lived processes train themselves. Nothing here imports torch
before it is needed.
"""

import json
import os
import sys
import time
import warnings
from functools import cache
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from hellora.backends.records import CONTRACT, FAILURE, from_records, note, text_of, to_records

TRAINER_SECONDS = 120.0  # that a trainer may take to start
RUNS = "HELLORA_RUNS"  # the variable that names the folder of a server's runs
ADMITTED = "HELLORA_ADMITTED"  # likewise its record of whose key belongs to which node, where keys are used

server = ServerApp()
client = ClientApp()


@client.query("join")
def join(message: Message, context: Context) -> Message:
    """Say who this client is, and what it can afford."""
    return Message(asked("join", message.content, context), reply_to=message)


@client.query("prepare")
def prepare(message: Message, context: Context) -> Message:
    """Load data and model."""
    return Message(asked("prepare", message.content, context), reply_to=message)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train the task in the message."""
    return Message(asked("train", message.content, context), reply_to=message)


def asked(kind: str, content: RecordDict, context: Context) -> RecordDict:
    """Answer a message, or say why there is no answer."""
    contract, me = text_of(content, CONTRACT), {"name": context.node_config.get("name", "")}
    data = from_records(content) if kind == "train" else b""
    try:
        if "trainer" in context.node_config:
            found = of_trainer(str(context.node_config["trainer"]), kind, contract, data)
        else:
            found = of_simulation(kind, contract, data, context)
    except (EOFError, OSError) as error:
        return note({**me, FAILURE: f"its trainer ended ({type(error).__name__})"})
    except RuntimeError as error:
        return note({**me, FAILURE: str(error)})
    return to_records(found) if kind == "train" else note(json.loads(found))


def of_trainer(socket: str, kind: str, contract: str, data: bytes) -> bytes:
    """Ask the resident trainer. Raise RuntimeError with its reason, EOFError if it ended."""
    until = time.monotonic() + TRAINER_SECONDS
    while True:
        try:
            connection = Client(socket, "AF_UNIX")
            break
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > until:
                raise RuntimeError(f"its trainer did not start within {TRAINER_SECONDS:g} s") from None
            time.sleep(0.1)
    with connection:
        for part in (kind.encode(), contract.encode(), data):
            connection.send_bytes(part)
        status, found = connection.recv_bytes(), connection.recv_bytes()
    if status != b"ok":
        raise RuntimeError(found.decode())
    return found


def of_simulation(kind: str, contract: str, data: bytes, context: Context) -> bytes:
    """Return what the simulated client says; its name is the number of its part of the data."""
    from hellora.deployment.participant import Contract

    if kind == "join":
        return json.dumps({"name": str(context.node_config["partition-id"])}).encode()
    found: bytes = participant().train(Contract.from_json(contract), data)
    return found


@cache
def participant() -> Any:
    """Make the participant of this process of the engine, once."""
    leave_out_notes()
    from hellora.deployment.participant import Simulated

    return Simulated(lambda line: print(line, file=sys.stderr, flush=True))


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """Run, or go on with, the experiment of the run's configuration."""
    leave_out_notes()
    from hellora.deployment.flower_setup import Deployed, SimulatedOnFlower
    from hellora.experiments.config import check
    from hellora.runs.progress import TerminalProgress
    from hellora.runs.run import run_experiment
    from hellora.runs.terminal import plain_console

    config = context.run_config
    simulated = bool(config["simulation"])
    experiment = check(str(config["name"]), json.loads(str(config["experiment"])), simulated)
    out = Path(os.environ.get(RUNS, "")) / str(config["out"])
    admitted = Path(os.environ[ADMITTED]) if ADMITTED in os.environ else None
    from_round = int(config["from_round"])
    world = SimulatedOnFlower(grid) if simulated else Deployed(grid, admitted=admitted)
    with TerminalProgress(plain_console()) as progress:
        back = None if from_round < 0 else from_round
        run_experiment(experiment, out, progress, bool(config["resume"]), world.prepare, back)


def leave_out_notes() -> None:
    """Keep libraries' notes out of the run's lines; Flower switches on warnings that Python leaves out."""
    from hellora.runs.terminal import quieten

    quieten()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
