"""`hellora client` runs the resident trainer with this client's model and data, and Flower's SuperNode before it.

The folder has trainer.json (what the trainer was told), supernode.log, flwr/ (Flower's own files) and what the trainer
keeps. They talk over a Unix socket in a folder that only this user can enter.

There are two of them because a SuperNode starts a fresh process for every message, which would load the model in every
round: what it starts passes the message on to the trainer, which stays.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hellora.core.errors import InputError
from hellora.core.units import parse_bytes
from hellora.deployment import REFUSES_KEY
from hellora.deployment.flower_tools import Address, arguments_of, environment, free_port, program, reason
from hellora.deployment.own_app import APP, write_programs
from hellora.deployment.server_process import claimed
from hellora.deployment.supervision import Child, Tell, supervise
from hellora.experiments.overrides import parse_settings

TRAINER = (sys.executable, "-m", "hellora.deployment.trainer")
LONGEST_SOCKET = 100  # characters; systems allow 104 or 108


@dataclass(frozen=True)
class Client:
    """Holds what `hellora client` was asked for. `budget` is for the planner: memory, layers, rank, uplink, …; `bounds`
    are on what a server may ask for: columns, models, steps, batch, threads.
    """

    server: Address
    name: str
    key: Path | None
    data: dict[str, Any]
    budget: dict[str, Any]
    device: str
    model: Path | None
    folder: Path
    bounds: dict[str, Any] = field(default_factory=dict)
    allow: Sequence[str] = ()  # code that a server names may run here
    trainer: Sequence[str] = field(default=TRAINER)
    app: str = APP  # that answers messages, whatever comes with a run

    @property
    def log(self) -> Path:
        """Say where the SuperNode writes what it does."""
        return self.folder / "supernode.log"

    def run(self, tell: Tell) -> None:
        """Take part until an exception, such as Ctrl-C, ends it."""
        program("flower-supernode")
        answered = self.server.reached()  # or raises: a server that cannot be trusted will not become another
        with claimed(self.folder), PrivateFolder() as private:
            socket = private.path / "trainer.sock"
            if len(str(socket)) > LONGEST_SOCKET:
                raise InputError(f"TMPDIR: {private.path} is too long a name for a socket: set a shorter TMPDIR")
            config = self.folder / "trainer.json"
            config.write_text(json.dumps(self.for_trainer(socket), indent=1))
            trainer = Child(
                "the trainer", lambda: [*self.trainer, str(config.resolve())], environment(self.folder / "flwr")
            )
            node = Child(
                "the SuperNode",
                lambda: self.node_command(socket),
                self.node_environment(),
                log=self.log,
                explain=self.why_it_ended,
            )
            tell(f"{self.name}: server {self.server}" + ("" if answered else " does not answer yet; going on trying"))
            supervise([trainer, node], tell, Arrival(node, lambda: tell(f"{self.name}: connected to {self.server}")))

    def for_trainer(self, socket: Path) -> dict[str, Any]:
        """Make what the trainer is told."""
        return {
            "name": self.name,
            "socket": str(socket),
            "data": self.data,
            **self.budget,
            **self.bounds,
            "device": self.device,
            "model": self.model and str(self.model.resolve()),
            "folder": str(self.folder.resolve()),
            "allow": list(self.allow),
        }

    def node_command(self, socket: Path) -> list[str]:
        """Make the SuperNode's command line, with a port for its own processes that is free now; should somebody take
        it, the next start has another. Where the trainer listens, only the node's settings can tell those processes.
        """
        command = [program("flower-supernode"), "--superlink", str(self.server), "--port", str(free_port())]
        command += ["--node-config", arguments_of({"name": self.name, "trainer": str(socket)})]
        if self.server.certificate is None or self.key is None:
            return [*command, "--insecure"]
        return [
            *command,
            *("--root-certificates", str(self.server.certificate)),
            *("--auth-supernode-private-key", str(self.key.resolve())),
        ]

    def node_environment(self) -> dict[str, str]:
        """Make the SuperNode's environment, in which its processes find our program in the place of Flower's."""
        found = environment(self.folder / "flwr")
        own = write_programs((self.folder / "bin").resolve(), self.app)
        return {**found, "PATH": os.pathsep.join([str(own), found["PATH"]])}

    def why_it_ended(self, output: str) -> str:
        """Say why the SuperNode ended; an untrusted server is an InputError, for it will not become another by itself.

        A SuperNode's exit status does not tell these apart, so its log has to.
        """
        if "CERTIFICATE_VERIFY_FAILED" in output:
            raise InputError(self.server.distrust(reason(output)))
        if refused := re.search(re.escape(REFUSES_KEY) + "(.*)", output):
            raise InputError(
                f"{self.server} refuses {self.name} for good: {refused[1].strip()}; whoever keeps the server can make "
                f"it a new key"
            )
        if "Failed to activate SuperNode" in output:
            return (
                f"{self.server} does not admit {self.name} (yet): its certificates folder must have "
                f"clients/{self.name}.pub of this very key, and no other process may use the key (after a kill, that "
                f"takes a minute)"
            )
        if "address already in use" in output:
            return "the SuperNode's port was taken by another process"
        words = reason(output)
        return f"the SuperNode ended{': ' if words else ''}{words} (see {self.log})"


@dataclass
class Arrival:
    """Says once per start of the SuperNode that the server has let it in."""

    node: Child
    say: Callable[[], None]
    seen: float = 0.0

    def __call__(self) -> None:
        # A SuperNode has no other way to say that it is in: it logs its id when the server has activated it.
        if self.node.running and self.node.started != self.seen and "SuperNode ID:" in self.node.output():
            self.seen = self.node.started
            self.say()


class PrivateFolder:
    """Makes a temporary folder that only this user can enter, with a short name, for a socket's path must be short."""

    def __enter__(self) -> "PrivateFolder":
        self.path = Path(tempfile.mkdtemp(prefix="hellora-"))
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def data_settings(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """Read the trainer's data from --data and --set; a local file or folder by its whole path.

    Raises:
        InputError: there is no such file, or a setting is not one of data.
    """
    given = parse_settings(texts)
    for key in given:
        if not key.startswith("data.") or key.count(".") != 1 or key == "data.name":
            raise InputError(f"--set {key}: a client sets only data.…, such as data.text=body (and --data its source)")
    path = Path(name)
    if path.exists():
        name = str(path.resolve())
    elif path.suffix or name.startswith((".", "/", "~")):
        raise InputError(f"--data: there is no file or folder {name}")
    if path.is_file() and not os.access(path, os.R_OK):
        raise InputError(f"--data: cannot read {name}")
    return {"name": name, **{key.partition(".")[2]: value for key, value in given.items()}}


def budget_settings(
    memory: str, layers: int | None, rank: int | None, uplink: str | None, seconds: float | None,
    speed: float | None, link: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Check limits, and return them as the trainer takes them. Raise InputError where one is no budget."""
    sizes = {"--memory": None if memory in ("auto", "none") else memory, "--uplink": uplink, "--link": link}
    for where, size in sizes.items():
        if size is not None:
            parse_bytes(size, where)
    for where, count in (("--layers", layers), ("--rank", rank)):
        if count is not None and count < 1:
            raise InputError(f"{where} {count}: it must be at least 1")
    for where, value in (("--seconds", seconds), ("--speed", speed)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{where} {value}: it must be a number above 0")
    if seconds is not None and speed is None:
        raise InputError("--seconds needs --speed, which `hellora plan --model … --measure` tells of this machine")
    return {
        "memory": memory,
        "layers": layers,
        "rank": rank,
        "uplink": uplink,
        "seconds": seconds,
        "speed": speed,
        "link": link,
    }


def bound_settings(
    columns: str | None, models: Sequence[str], max_steps: int, max_batch: int, threads: int | None
) -> dict[str, Any]:
    """Check what a server may ask for, and return it as the trainer takes it. Raise InputError where it is no bound."""
    named = [] if columns is None else columns.split(",")
    if not all(named):
        raise InputError(f"--columns {columns!r}: write names with commas between them, such as body,topic")
    for where, count in (("--max-steps", max_steps), ("--max-batch", max_batch), ("--threads", threads)):
        if count is not None and count < 1:
            raise InputError(f"{where} {count}: it must be at least 1")
    return {
        "columns": named,
        "models": list(models),
        "max_steps": max_steps,
        "max_batch": max_batch,
        "threads": threads,
    }
