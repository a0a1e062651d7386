"""Runs queue at a server: one after the other, in the order in which they came; what was killed holds up nobody."""

import subprocess
import sys
from pathlib import Path
from threading import Event, Thread

import pytest

from hellora.core.errors import InputError
from hellora.deployment import turns
from hellora.deployment.flower_tools import Address
from hellora.deployment.turns import control_of, note_control, turn


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(turns, "BUSY_SECONDS", 0.01)


class Runner:
    """Takes a turn in a thread of its own, and holds it until it is let go."""

    def __init__(self, folder: Path, title: str, order: list[str]) -> None:
        self.said: list[str] = []
        self.waits, self.has, self.go = Event(), Event(), Event()

        def say(line: str) -> None:
            self.said.append(line)
            self.waits.set()

        def run() -> None:
            with turn(folder, title, say, lambda: None):
                order.append(title)
                self.has.set()
                assert self.go.wait(30)

        self.thread = Thread(target=run)
        self.thread.start()

    def end(self) -> None:
        self.go.set()
        self.thread.join(30)


def test_runs_go_one_after_the_other_in_their_order(tmp_path: Path) -> None:
    order: list[str] = []
    first = Runner(tmp_path, "first", order)
    assert first.has.wait(30)
    second = Runner(tmp_path, "second", order)
    assert second.waits.wait(30)
    third = Runner(tmp_path, "third", order)
    assert third.waits.wait(30)
    assert second.said == ["waiting: first runs; place 1 in the queue (Ctrl-C leaves it)"]
    assert third.said == ["waiting: first runs; place 2 in the queue (Ctrl-C leaves it)"]
    third.waits.clear()
    first.end()
    assert second.has.wait(30)
    assert third.waits.wait(30)
    assert third.said[-1].startswith("waiting: second runs; place 1")
    assert not third.has.is_set()
    second.end()
    third.end()
    assert order == ["first", "second", "third"]
    assert first.said == []
    assert [path.name for path in (tmp_path / "turns").iterdir()] == ["gate.lock"]


def test_what_was_killed_holds_up_nobody(tmp_path: Path) -> None:
    holding = f"""
import time
from pathlib import Path
from hellora.deployment.turns import turn
with turn(Path({str(tmp_path)!r}), "killed", print, lambda: None):
    print("has", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", holding], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "has\n"
        process.kill()
    with turn(tmp_path, "mine", pytest.fail, lambda: None):
        assert len(list((tmp_path / "turns").iterdir())) == 3  # the gate, a lock, its title


def test_a_run_that_nobody_follows_is_waited_for(tmp_path: Path) -> None:
    said: list[str] = []
    answers = iter(["waiting: run 7 goes on", "waiting: run 7 goes on", None])
    with turn(tmp_path, "mine", said.append, lambda: next(answers)):
        assert said == ["waiting: run 7 goes on"]


def test_who_leaves_the_queue_leaves_nothing(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), turn(tmp_path, "mine", pytest.fail, interrupt):
        pytest.fail("it had its turn")
    assert [path.name for path in (tmp_path / "turns").iterdir()] == ["gate.lock"]


@pytest.mark.parametrize("certificate", [None, Path("/keys/ca.crt")])
def test_the_folder_says_where_runs_are_submitted(tmp_path: Path, certificate: Path | None) -> None:
    address = Address("127.0.0.1", 20_001, certificate)
    note_control(tmp_path, address)
    assert control_of(tmp_path) == address
    with pytest.raises(InputError, match="on its machine and as its user"):
        control_of(tmp_path / "absent")
