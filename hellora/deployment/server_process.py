"""`hellora server` keeps Flower's SuperLink alive behind a door, and tells it which clients' keys to admit.

The folder has state.db (nodes, runs and messages), control.json (where runs are submitted), loopback/ (the certificate
between the door and the SuperLink), admitted.json and refused.json (whose keys), superlink.log, door.log, and flwr/
(Flower's own files).
"""

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from hellora.core.errors import InputError
from hellora.deployment.flower_tools import Address, Flower, check_free, environment, free_port, program, reason
from hellora.deployment.supervision import Child, Tell, supervise
from hellora.deployment.turns import control_of, note_control

if TYPE_CHECKING:
    from hellora.deployment.admission import Admission

DOOR = (sys.executable, "-m", "hellora.deployment.door_process")
LOOPBACK = "127.0.0.1"
LOOPBACK_DAYS = 3650  # its certificate is made anew at every start
LOOK_SECONDS = 2.0  # between looks for new keys


@dataclass(frozen=True)
class Server:
    """Holds what `hellora server` was asked for. Without certificates it speaks plain text, to anybody.

    `inner_port`, of the SuperLink on 127.0.0.1, is chosen at every start.
    """

    folder: Path
    host: str
    port: int
    certificates: Path | None
    runs: Path
    health_port: int | None = None
    inner_port: int = 0

    @property
    def log(self) -> Path:
        """Say where the SuperLink writes what it does."""
        return self.folder / "superlink.log"

    @property
    def database(self) -> Path:
        """Say where it keeps nodes, runs and messages: in memory, as by default, they would end with the process."""
        return self.folder / "state.db"

    @property
    def inner_address(self) -> Address:
        """Say how processes of this machine reach the SuperLink."""
        authority = None if self.certificates is None else (self.folder / "loopback" / "ca.crt").resolve()
        return Address(LOOPBACK, self.inner_port, authority)

    def check(self) -> None:
        """Raise InputError where it cannot work."""
        if self.certificates is not None:
            from hellora.deployment.certificates import check_server

            check_server(self.certificates)
        check_free(self.host, self.port)
        if self.health_port is not None:
            check_free(LOOPBACK, self.health_port)

    @property
    def told_to_runs(self) -> dict[str, str]:
        """Make what a run on this server finds in its environment (`flower_app.py`).

        A ServerApp is told no more than what was submitted, and whoever submits must not say where to write or whom to
        trust. What the SuperLink's processes inherit is said by whoever keeps the server.
        """
        told = {"HELLORA_RUNS": str(self.runs.resolve())}
        admitted = str((self.folder / "admitted.json").resolve())
        return told if self.certificates is None else {**told, "HELLORA_ADMITTED": admitted}

    def superlink_command(self) -> list[str]:
        """Make the SuperLink's command line."""
        arguments = ["--host", LOOPBACK, "--port", str(self.inner_port), "--database", str(self.database.resolve())]
        arguments += ["--disable-runtime-dependency-installation"]
        if self.certificates is None:
            return [program("flower-superlink"), *arguments, "--insecure"]
        files = {"ca-certfile": "ca.crt", "certfile": "server.crt", "keyfile": "server.key"}
        for option, name in files.items():
            arguments += [f"--ssl-{option}", str((self.folder / "loopback" / name).resolve())]
        return [program("flower-superlink"), *arguments, "--enable-supernode-auth"]

    def write_door(self) -> Path:
        """Write what the door is told."""
        from hellora.deployment.door_process import DoorSettings

        inner = self.inner_address
        settings = DoorSettings(
            host=self.host,
            port=self.port,
            superlink=f"{'http' if inner.certificate is None else 'https'}://{inner}",
            authority=None if inner.certificate is None else str(inner.certificate),
            certificates=None if self.certificates is None else str(self.certificates.resolve()),
            refused=str((self.folder / "refused.json").resolve()),
            state=str(self.folder.resolve()),
            health_port=self.health_port,
        )
        path = self.folder / "door.json"
        path.write_text(json.dumps(asdict(settings), indent=1))
        return path

    def run(self, tell: Tell) -> None:
        """Serve until an exception, such as Ctrl-C, ends it."""
        self.check()
        with claimed(self.folder):
            if self.certificates is not None:
                self.make_loopback()
            replace(self, inner_port=self.port_inside()).serve(tell)

    def port_inside(self) -> int:
        """Choose a port for the SuperLink: the former if it is free, so that whoever follows a run finds it again."""
        with contextlib.suppress(InputError):
            before = control_of(self.folder)
            check_free(before.host, before.port)
            return before.port
        return free_port()

    def make_loopback(self) -> None:
        """Make the certificate by which the door, and whoever submits a run, know the SuperLink."""
        from hellora.deployment.certificates import make

        shutil.rmtree(self.folder / "loopback", ignore_errors=True)
        make(self.folder / "loopback", [], [], LOOPBACK_DAYS)

    def serve(self, tell: Tell) -> None:
        """Keep SuperLink and door alive, on ports that are known."""
        new = not self.database.exists()  # without its database the SuperLink knows nobody
        note_control(self.folder, self.inner_address)
        flower = Flower.at(self.inner_address, self.folder / "flwr")
        superlink = Child(
            "the SuperLink",
            self.superlink_command,
            environment(self.folder / "flwr", **self.told_to_runs),
            log=self.log,
            explain=lambda output: why_it_ended(output, self.log),
        )
        settings = str(self.write_door().resolve())
        log = self.folder / "door.log"
        door = Child("the door", lambda: [*DOOR, settings], environment(self.folder / "flwr"), log=log)
        supervise([superlink, door], tell, Watch(self, superlink, door, tell, self.admission(flower, tell, new)))

    def admission(self, flower: Flower, tell: Tell, new: bool) -> "Admission | None":
        """Make what admits clients; None where anybody is."""
        if self.certificates is None:
            return None
        from hellora.deployment.admission import Admission

        return Admission(self.certificates, self.folder, flower, tell, knows_nobody=new)


@dataclass
class Watch:
    """Says when the server can be reached, and looks for new keys from then on."""

    server: Server
    superlink: Child
    door: Child
    tell: Tell
    admission: "Admission | None"
    ready: bool = False
    due: float = 0.0

    def __call__(self) -> None:
        if time.monotonic() < self.due or not self.superlink.running:
            return
        self.due = time.monotonic() + (LOOK_SECONDS if self.ready else 0.3)
        if not self.ready:
            self.ready = "listening on" in self.door.output() and self.server.inner_address.reached()
            if not self.ready:
                return
            self.tell(f"listening on {self.server.host}:{self.server.port}; runs go to {self.server.runs}")
        if self.admission is not None:
            self.admission.look()


def why_it_ended(output: str, log: Path) -> str:
    """Say why the SuperLink ended, in its own words where it has any."""
    words = reason(output)
    return f"the SuperLink ended: {words} (see {log})" if words else f"the SuperLink ended (see {log})"


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
