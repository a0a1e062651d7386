"""Processes that are kept alive, and of which nothing is left: however they, or who asked for them, end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hellora.core.errors import InputError
from hellora.deployment import supervision
from hellora.deployment.supervision import Child, ending_on_signals, kept_alive, supervise, under_supervisor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descendants are found by /proc")

# Starts a grandchild in a session of its own that ignores SIGTERM, as a badly behaved engine would.
FAMILY = """
import os, signal, subprocess, sys, time
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
child = subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
open(sys.argv[1], "a").write(f"{os.getpid()} {child.pid}\\n")
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Callable[[], list[int]]]:
    """The processes that FAMILY has noted so far; none of them may outlive the test."""
    file = tmp_path / "pids"
    file.touch()

    def noted() -> list[int]:
        return [int(pid) for pid in file.read_text().split()]

    yield noted
    for pid in filter(alive, noted()):
        os.kill(pid, signal.SIGKILL)


def family(tmp_path: Path, then: str = "time.sleep(99)") -> list[str]:
    return [sys.executable, "-c", FAMILY + then, str(tmp_path / "pids")]


def test_a_child_that_ends_is_started_again_and_its_family_does_not_stay(
    tmp_path: Path, pids: Callable[[], list[int]]
) -> None:
    told: list[str] = []
    child = Child("stub", lambda: family(tmp_path, "sys.exit(3)"), os.environ, wait=0.05, grace=0.2)
    with kept_alive([child]):
        wait_for(lambda: child.look(told.append) or len(pids()) >= 4)
        assert not alive(pids()[1])  # the first grandchild is gone before the second child starts
    assert not any(map(alive, pids()))
    assert told[0] == "stub ended with status 3; it is started again"
    assert len(told) == 1  # a reason is told once


def test_the_wait_grows_with_every_end() -> None:
    child = Child("stub", lambda: [sys.executable, "-c", ""], os.environ, wait=0.01)
    waits = []
    with kept_alive([child]):
        while len(waits) < 3:
            before = child.due
            child.look(lambda _: None)
            if child.due != before:
                waits.append(child.wait)
    assert waits == [0.02, 0.04, 0.08]


def test_a_reason_that_will_not_change_ends_the_supervision(tmp_path: Path) -> None:
    def refuse(output: str) -> str:
        raise InputError(f"never: {output.strip()}")

    log = tmp_path / "log"
    log.write_text("of an earlier start\n")
    child = Child("stub", lambda: [sys.executable, "-c", "print('no such key')"], os.environ, log, refuse)
    with pytest.raises(InputError, match=r"^never: no such key$"):
        supervise([child], print)


def test_everything_ends_with_the_block(tmp_path: Path, pids: Callable[[], list[int]]) -> None:
    child = Child("stub", lambda: family(tmp_path), os.environ, grace=0.2)
    with kept_alive([child]):
        child.start()
        wait_for(lambda: len(pids()) == 2)
        assert all(map(alive, pids()))
    assert not any(map(alive, pids()))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_everything_ends_with_its_supervisor(tmp_path: Path, pids: Callable[[], list[int]], number: int) -> None:
    script = (
        "import os, sys\n"
        "from hellora.deployment.supervision import *\n"
        f"child = Child('stub', lambda: {family(tmp_path)!r}, os.environ, grace=0.2)\n"
        "with ending_on_signals():\n"
        "    try: supervise([child], print)\n"
        "    except KeyboardInterrupt: sys.exit(42)\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[3])
    wait_for(lambda: len(pids()) == 2)
    supervisor.send_signal(number)
    assert supervisor.wait(20) == (-signal.SIGKILL if number == signal.SIGKILL else 42)
    wait_for(lambda: not any(map(alive, pids())))


def test_the_child_ends_even_if_its_guard_is_killed(tmp_path: Path, pids: Callable[[], list[int]]) -> None:
    child = Child("stub", lambda: family(tmp_path), os.environ, grace=0.2)
    child.start()
    wait_for(lambda: len(pids()) == 2)
    assert child.process is not None
    child.process.kill()
    wait_for(lambda: not alive(pids()[0]))
    child.stop()
    child.join()


@pytest.mark.parametrize(("code", "status"), [("0", 0), ("7", 7), ("os.kill(os.getpid(), 9)", 137)])
def test_the_guard_ends_as_its_command_did(code: str, status: int) -> None:
    command = under_supervisor([sys.executable, "-c", f"import os, sys; sys.exit({code})"])
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.wait(20) == status


def test_a_command_that_ignores_sigterm_is_killed(pids: Callable[[], list[int]], tmp_path: Path) -> None:
    stubborn = family(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)")
    with subprocess.Popen(under_supervisor(stubborn, grace=0.2), stdin=subprocess.PIPE) as process:
        wait_for(lambda: len(pids()) == 2)
        process.stdin.close()
        process.wait(20)
        process.stdin = None
    assert not any(map(alive, pids()))


def test_signals_interrupt_only_inside_the_block() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), ending_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_long_log_begins_anew_and_the_latest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "LOG_BYTES", 10)
    child = Child("talker", list, {}, log=tmp_path / "talker.log")
    with (tmp_path / "talker.log").open("a") as log:
        for number in range(6):
            log.write(f"line {number}, and more\n")
            log.flush()
            child.rotate()
        log.write("short\n")
        log.flush()
        child.rotate()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "talker.log": "short\n",
        "talker.log.1": "line 5, and more\n",
        "talker.log.2": "line 4, and more\n",
        "talker.log.3": "line 3, and more\n",
    }


def test_what_is_ignored_stays_ignored() -> None:
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_on_signals() as come:
            os.kill(os.getpid(), signal.SIGHUP)
        assert come == []
    finally:
        signal.signal(signal.SIGHUP, before)
