"""Where runs are submitted to a server, and in what order: from its own machine, one after the other.

Nobody but the server's own user can enter its folder, and the folder says where the SuperLink listens (control.json)
and who waits (turns/). A run that waits is a file there with a lock on it, which the system takes away with its
process, so that nothing of a waiting run is left when it ends, however that happens.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hellora.core.errors import InputError
from hellora.deployment.flower_tools import Address
from hellora.deployment.supervision import Tell
from hellora.record.atomic import write_atomically

LOOK_SECONDS, BUSY_SECONDS = 1.0, 5.0  # between looks: at the queue, at the server, which takes a process
GATE = "gate.lock"


def note_control(folder: Path, address: Address) -> None:
    """Say in a server's folder where runs are submitted."""
    trust = address.certificate and str(address.certificate)
    fields = {"host": address.host, "port": address.port, "certificate": trust}
    write_atomically(folder / "control.json", json.dumps(fields).encode())


def control_of(folder: Path) -> Address:
    """Return where runs are submitted to the server with this folder.

    Raises:
        InputError: there is no such folder, or it is another user's.
    """
    try:
        fields = json.loads((folder / "control.json").read_text())
    except OSError as error:
        raise InputError(
            f"--federation {folder}: it is not the folder of a `hellora server` ({error.strerror}): give the one that "
            f"was its argument, on its machine and as its user"
        ) from error
    trust = fields["certificate"]
    return Address(fields["host"], fields["port"], None if trust is None else Path(trust))


@contextmanager
def turn(folder: Path, title: str, say: Tell, busy: Callable[[], str | None]) -> Iterator[None]:
    """Wait until all runs that were submitted before have ended, and hold the turn for the block.

    Args:
        folder: the server's
        title: of this run, for those that wait behind it
        say: is told the place in the queue, whenever it changes
        busy: says what runs at the server though nobody follows it, None for nothing
    """
    turns = folder / "turns"
    turns.mkdir(exist_ok=True)
    with FileLock(turns / GATE):
        own = turns / f"{time.time_ns():020d}-{os.getpid()}"
        lock = FileLock(own)
        lock.acquire(timeout=0)
        titled(own).write_text(title)
    try:
        told = ""
        while line := (waits := place(turns, own)) or busy():
            if line != told:
                say(line)
                told = line
            time.sleep(LOOK_SECONDS if waits else BUSY_SECONDS)
        yield
    finally:
        clear(own)
        lock.release()


def place(turns: Path, own: Path) -> str | None:
    """Say how many runs are before the own one, and which runs now; None for none."""
    with FileLock(turns / GATE):  # nobody is between making a file and locking it
        before = [path for path in sorted(turns.iterdir()) if not path.suffix and path.name < own.name]
        before = [path for path in before if is_held(path)]
        if not before:
            return None
        return f"waiting: {titled(before[0]).read_text()} runs; place {len(before)} in the queue (Ctrl-C leaves it)"


def is_held(path: Path) -> bool:
    """Tell whether a process waits behind a file; what one left that was killed is cleared away."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    clear(path)
    lock.release()
    return False


def titled(path: Path) -> Path:
    return path.with_name(f"{path.name}.title")


def clear(path: Path) -> None:
    path.unlink(missing_ok=True)
    titled(path).unlink(missing_ok=True)
