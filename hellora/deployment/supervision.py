"""Keep processes alive while hellora runs, and end them with it, whatever happens to it."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hellora.deployment import supervisor

Tell = Callable[[str], None]

TICK = 0.2  # seconds between looks
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds before a start that follows an end
LOG_BYTES, FORMER_LOGS = 10 << 20, 3
LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # not everywhere are both
SETTLED = 60.0  # a process that ran for so many seconds starts anew with the first wait


@dataclass
class Child:
    """Keeps a process running, under a supervisor.

    `command` is asked at every start, for a port may have to be another. Its output goes to the end of `log`, or to our
    stderr. `explain` gets what it has written since its start, and says in words for a person why it ended; "" where it
    cannot tell. It may raise InputError: then no start is tried again.

    Flower's programs end for reasons that pass (a server that restarts, a port that is taken, a key that its last
    process still holds), so that an end is no failure; waiting longer each time spares a machine where it is one.
    """

    name: str
    command: Callable[[], Sequence[str]]
    environment: Mapping[str, str]
    log: Path | None = None
    explain: Callable[[str], str] = lambda _: ""
    grace: float = 5.0  # seconds between SIGTERM and SIGKILL
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    wait: float = FIRST_WAIT
    due: float = 0.0
    told: str = field(default="", repr=False)
    begin: int = 0  # of this start's output in `log`

    def start(self) -> None:
        """Start it, whether it runs or not."""
        command = under_supervisor(self.command(), self.grace)
        output: int = sys.stderr.fileno() if self.log is None else os.open(self.log, LOG_FLAGS, 0o600)
        try:
            self.begin = self.log.stat().st_size if self.log is not None else 0
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # its other end: the supervisor ends when this closes
                stdout=output,
                stderr=output,
                env=dict(self.environment),
                start_new_session=True,  # Ctrl-C is for us; we tell the children
            )
        finally:
            if self.log is not None:
                os.close(output)
        self.started = time.monotonic()

    @property
    def running(self) -> bool:
        """Tell whether its supervisor runs, which is as long as anything of it does."""
        return self.process is not None and self.process.poll() is None

    def output(self) -> str:
        """Read what it has written since its start; nothing where it writes to our stderr."""
        if self.log is None or not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(self.begin)
            return file.read().decode(errors="replace")

    def look(self, tell: Tell) -> None:
        """Start it where it does not run and its time has come. A reason is told once, not at every try."""
        if self.running:
            self.rotate()
            return
        now = time.monotonic()
        if self.process is not None:
            status = self.process.returncode
            self.stop()
            self.join()  # before the next start: the port and the key must be free
            if now - self.started > SETTLED:
                self.wait, self.told = FIRST_WAIT, ""
            self.due, self.wait = now + self.wait, min(2 * self.wait, LONGEST_WAIT)
            if (text := self.explain(self.output()) or f"{self.name} ended with status {status}") != self.told:
                tell(f"{text}; it is started again")
                self.told = text
        elif now >= self.due:
            self.start()

    def rotate(self) -> None:
        """Begin the log anew where it is long; the former ones are kept as .1, the latest, and so on.

        The process goes on writing to the end of the same file, so that it is copied and emptied, not renamed.
        """
        if self.log is None or not self.log.exists() or self.log.stat().st_size < LOG_BYTES:
            return
        former = [self.log.with_name(f"{self.log.name}.{number}") for number in range(1, FORMER_LOGS + 1)]
        for older, newer in zip(former[:0:-1], former[-2::-1], strict=True):
            if newer.exists():
                newer.replace(older)
        shutil.copy(self.log, former[0])
        os.truncate(self.log, 0)
        self.begin = 0

    def stop(self) -> None:
        """Ask it to end; does not wait."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()

    def join(self) -> None:
        """Wait until it and all that it started are gone."""
        if self.process is not None:
            self.process.wait()
            self.process = None


def under_supervisor(command: Sequence[str], grace: float = 5.0) -> list[str]:
    """Put a command under a supervisor: it ends when the pipe to its stdin closes, at the latest `grace` seconds later.

    The supervisor is a process of its own, because it must outlive us if we are killed; -I, and that it imports nothing
    of hellora, keep it quick and small.
    """
    return [sys.executable, "-I", supervisor.__file__, str(grace), *command]


@contextmanager
def kept_alive(children: Sequence[Child]) -> Iterator[Sequence[Child]]:
    """Let the block be left only when the children, and everything that they started, have ended."""
    try:
        yield children
    finally:
        with deaf():  # a second Ctrl-C, out of impatience, must not leave one behind
            for child in reversed(children):
                child.stop()
            for child in children:
                child.join()


def supervise(children: Sequence[Child], tell: Tell, at_every_look: Callable[[], None] = lambda: None) -> None:
    """Keep the children running until an exception, such as Ctrl-C, ends it."""
    with kept_alive(children):
        while True:
            for child in children:
                child.look(tell)
            at_every_look()
            time.sleep(TICK)


@contextmanager
def deaf() -> Iterator[None]:
    """Run the block without interruption by Ctrl-C, SIGTERM or a closed terminal."""
    if threading.current_thread() is not threading.main_thread():  # only that one gets, and may set, signals
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *ENDING)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ending_on_signals() -> Iterator[Sequence[int]]:
    """Let SIGTERM and a closed terminal (SIGHUP) end the block as Ctrl-C does, with KeyboardInterrupt; yield the
    numbers of those that have come.

    By default they end this process on the spot, and nobody would say how to go on. What ignores a signal, as under
    nohup, goes on ignoring it.
    """
    come: list[int] = []

    def interrupt(number: int, _: object) -> None:
        come.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only that one gets, and may set, signals
        yield come
        return
    numbers = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield come
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
