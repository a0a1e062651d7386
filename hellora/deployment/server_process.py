"""`hellora server` keeps Flower's SuperLink alive, and tells it which clients' keys to admit.

The folder has state.db (nodes, runs and messages), superlink.log, admitted.json (whose keys were admitted) and flwr/
(Flower's own files).
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from hellora.core.errors import HelloraError, InputError, RunError
from hellora.deployment.flower_tools import Address, Flower, check_free, environment, program, reason
from hellora.deployment.supervision import Child, Tell, supervise
from hellora.record.atomic import write_atomically

LOOK_SECONDS = 2.0  # between looks for new keys
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where Flower's own processes reach a server that listens there


@dataclass(frozen=True)
class Server:
    """Holds what `hellora server` was asked for. Without certificates it speaks plain text, to anybody."""

    folder: Path
    host: str
    port: int
    certificates: Path | None
    runs: Path

    @property
    def log(self) -> Path:
        """Say where the SuperLink writes what it does."""
        return self.folder / "superlink.log"

    @property
    def database(self) -> Path:
        """Say where it keeps nodes, runs and messages: in memory, as by default, they would end with the process."""
        return self.folder / "state.db"

    @property
    def own_address(self) -> Address:
        """Say how the server's own processes reach it: no certificate is for 0.0.0.0."""
        host = EVERYWHERE.get(self.host, self.host)
        return Address(host, self.port, self.certificates and (self.certificates / "ca.crt").resolve())

    def check(self) -> None:
        """Raise InputError where it cannot work."""
        if self.certificates is not None:
            from hellora.deployment.certificates import check_server

            check_server(self.certificates, self.own_address.host)
        check_free(self.host, self.port)

    @property
    def told_to_runs(self) -> dict[str, str]:
        """Make what a run on this server finds in its environment (`flower_app.py`).

        A ServerApp is told no more than what was submitted, and whoever submits must not say where to write or whom to
        trust. What the SuperLink's processes inherit is said by whoever keeps the server.
        """
        told = {"HELLORA_RUNS": str(self.runs.resolve())}
        return told if self.certificates is None else {**told, "HELLORA_ADMITTED": str(self.admitted.resolve())}

    @property
    def admitted(self) -> Path:
        """Say where it is noted whose keys were admitted."""
        return self.folder / "admitted.json"

    def command(self) -> list[str]:
        """Make the SuperLink's command line."""
        arguments = ["--host", self.host, "--port", str(self.port), "--database", str(self.database.resolve())]
        arguments += ["--disable-runtime-dependency-installation"]
        if self.certificates is None:
            return [program("flower-superlink"), *arguments, "--insecure"]
        files = {"ca-certfile": "ca.crt", "certfile": "server.crt", "keyfile": "server.key"}
        for option, name in files.items():
            arguments += [f"--ssl-{option}", str((self.certificates / name).resolve())]
        return [program("flower-superlink"), *arguments, "--enable-supernode-auth"]

    def run(self, tell: Tell) -> None:
        """Serve until an exception, such as Ctrl-C, ends it."""
        self.check()
        with claimed(self.folder):
            superlink = Child(
                "the SuperLink",
                self.command,
                environment(self.folder / "flwr", **self.told_to_runs),
                log=self.log,
                explain=lambda output: why_it_ended(output, self.log),
            )
            admission = Admission(self, Flower.at(self.own_address, self.folder / "flwr"), tell)
            supervise([superlink], tell, lambda: admission.look(superlink))


def why_it_ended(output: str, log: Path) -> str:
    """Say why the SuperLink ended, in its own words where it has any."""
    words = reason(output)
    return f"the SuperLink ended: {words} (see {log})" if words else f"the SuperLink ended (see {log})"


class Admission:
    """Tells the SuperLink of every public key in the certificates' folder, also of those that come while it runs.

    A SuperLink reads keys from no folder: each is registered by a command, once, while it runs. Its database keeps
    them; `admitted.json` says whose they are, and a run learns from it which client a node is.
    """

    def __init__(self, server: Server, flower: Flower, tell: Tell) -> None:
        self.server, self.flower, self.tell = server, flower, tell
        self.file = server.admitted
        self.admitted: dict[str, dict[str, str]] = {}  # by public key: its client's name and its node's id
        if server.database.exists() and self.file.exists():  # without its database the SuperLink knows nobody
            self.admitted = json.loads(self.file.read_text())
        self.refused: dict[str, str] = {}  # what was said of a file
        self.ready = False
        self.due = 0.0

    def look(self, superlink: Child) -> None:
        """Admit new keys, now and then."""
        if time.monotonic() < self.due or not superlink.running:
            return
        self.due = time.monotonic() + (LOOK_SECONDS if self.ready else 0.3)
        if not self.ready:
            self.ready = self.server.own_address.reached()
            if not self.ready:
                return
            self.tell(f"listening on {self.server.host}:{self.server.port}; runs go to {self.server.runs}")
        if self.server.certificates is None:
            return
        for path in sorted((self.server.certificates / "clients").glob("*.pub")):
            try:
                self.admit(path)
            except HelloraError as error:
                if self.refused.get(path.name) != str(error):
                    self.tell(f"cannot admit {path.stem}: {error}")
                    self.refused[path.name] = str(error)

    def admit(self, path: Path) -> None:
        """Register a client's key, unless that has been done, and note it."""
        from hellora.deployment.certificates import public_key_text

        key = public_key_text(path)
        if key in self.admitted:
            return
        try:
            answer = self.flower.call("supernode", "register", str(path.resolve()), "--name", path.stem)
            node = str(answer.get("node-id", ""))
        except RunError as error:
            if "already in use" not in str(error):
                raise
            node = ""  # it was admitted, and we were killed before we could note it
        self.admitted[key] = {"name": path.stem, "node": node}
        write_atomically(self.file, json.dumps(self.admitted, indent=1).encode())
        self.tell(f"admitted {path.stem}")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a folder, alone; it is made where there is none, for this user's eyes only."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(folder / "hellora.lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"{folder} is in use by another process: end that one, or choose another folder") from error
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
