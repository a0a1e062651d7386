"""Run one command so that nothing of it outlives whoever asked. A script; it imports nothing of hellora.

    python supervisor.py GRACE COMMAND …

The asker keeps a pipe to this script's stdin open. When the pipe closes, for whatever reason (even SIGKILL), or on
SIGTERM, the command gets SIGTERM and, after GRACE seconds, SIGKILL. Then, as after an end of its own, everything that
it started and left behind is ended likewise. The script ends with the command's exit status; the command's own stdin is
a pipe that closes with this script. On Linux no descendant can escape; elsewhere only those of its process group are
found.

Flower's programs need it: a SuperLink and a SuperNode start processes of their own, some in sessions of their own, and
those do not end with them. What a killed client left would go on training, and hold the key that its successor needs.
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
    """Set an attribute of this process; Python has no name for this call of Linux."""
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with_supervisor() -> None:
    """Let the command end even if this script is killed; this runs in its process, before it starts."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def descendants() -> list[int]:
    """Find every process below this one, zombies left out.

    It goes by parents, not by process groups or sessions: a child may leave those, but not its parents.
    """
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                # The program's name stands in brackets, and may have any character in it: what follows counts.
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
    """Runs the command, and ends what is left of it."""

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
        """Send a signal to all that is left, and return whom."""
        rest = descendants() if LINUX else []
        for pid in rest:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if not LINUX:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child.pid, number)
        return rest

    def run(self) -> int:
        """Wait for the command's end, or end it, and return its status."""
        while self.status is None and not self.asked_to_stop:
            # An end of file: the asker has closed the pipe, or is gone, even by SIGKILL, which it could not tell of.
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
        """End all that is left: ask first, then kill."""
        until = time.monotonic() + self.grace
        if self.status is not None:
            self.signal_rest(signal.SIGTERM)
            while time.monotonic() < until and LINUX and descendants():
                time.sleep(TICK)
                self.reap()
        while self.signal_rest(signal.SIGKILL):  # again: one of them may just have started another
            time.sleep(TICK)
            self.reap()

    def stop(self, *_: object) -> None:
        """Note that the command has to end; a handler of signals does no more."""
        self.asked_to_stop = True


def main() -> int:
    """Supervise the command of the command line, and return its exit status."""
    supervisor = Supervisor(sys.argv[2:], float(sys.argv[1]))
    signal.signal(signal.SIGTERM, supervisor.stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the asker, who then closes the pipe
    status = supervisor.run()
    return 128 - status if status < 0 else status  # as shells say that a signal ended it


if __name__ == "__main__":
    sys.exit(main())
