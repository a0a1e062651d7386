"""Run one command so that nothing of it outlives whoever asked. A script; it imports nothing of hellora.

    python supervisor.py GRACE COMMAND …

The asker keeps a pipe to this script's stdin open. When the pipe closes, for whatever reason (even SIGKILL), or on
SIGTERM, the command gets SIGTERM and, after GRACE seconds, SIGKILL. Then, as after an end of its own, everything that
it started and left behind is ended likewise. The script ends with the command's exit status; the command's own stdin is
a pipe that closes with this script. On Linux no descendant can escape; elsewhere only those of its process group are
found.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LINUX = sys.platform == "linux"
TICK = 0.05  # seconds between looks


def prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with_supervisor() -> None:
    """In the command's process, before it starts: even if this script is killed, the command ends."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def descendants() -> list[int]:
    """Every process below this one, zombies left out."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    children.setdefault(int(parent), []).append(int(entry.name))
    found, waiting = [], [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


class Supervisor:
    def __init__(self, command: list[str], grace: float) -> None:
        self.grace = grace
        self.status: int | None = None
        self.asked_to_stop = False
        if LINUX:
            prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans of the command become ours
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, start_new_session=True, preexec_fn=die_with_supervisor if LINUX else None
        )

    def reap(self) -> None:
        """Note the end of the command, and take away whatever else has ended."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.child.pid:
                    self.status = self.child.returncode = os.waitstatus_to_exitcode(ended[1])

    def signal_rest(self, number: int) -> list[int]:
        """Send a signal to all that is left; returns whom."""
        rest = descendants() if LINUX else []
        for pid in rest:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if not LINUX:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child.pid, number)
        return rest

    def run(self) -> int:
        """Wait for the command's end, or end it; returns its status."""
        while self.status is None and not self.asked_to_stop:
            if select.select([sys.stdin], [], [], TICK)[0] and not os.read(0, 1024):
                self.asked_to_stop = True
            self.reap()
        if self.status is None:
            self.child.terminate()
            until = time.monotonic() + self.grace
            while self.status is None and time.monotonic() < until:
                time.sleep(TICK)
                self.reap()
        self.clear()
        return self.status if self.status is not None else -signal.SIGKILL

    def clear(self) -> None:
        """End all that is left: asked first, then killed."""
        until = time.monotonic() + self.grace
        if self.status is not None:
            self.signal_rest(signal.SIGTERM)
            while time.monotonic() < until and LINUX and descendants():
                time.sleep(TICK)
                self.reap()
        while self.signal_rest(signal.SIGKILL):
            time.sleep(TICK)
            self.reap()

    def stop(self, *_: object) -> None:
        self.asked_to_stop = True


def main() -> int:
    supervisor = Supervisor(sys.argv[2:], float(sys.argv[1]))
    signal.signal(signal.SIGTERM, supervisor.stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = supervisor.run()
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main())
