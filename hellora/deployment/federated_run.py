"""Submit an experiment to Flower, follow it to its end, and say how it ended.

What is submitted is a bundle that names the apps of hellora; the code itself is what server and clients have installed.
"""

import contextlib
import importlib.metadata
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from hellora.core.errors import InputError, RunError, one_line
from hellora.core.version import __version__
from hellora.deployment.client_process import PrivateFolder
from hellora.deployment.flower_tools import (
    CONNECTION,
    Address,
    Flower,
    arguments_of,
    environment,
    free_port,
    program,
    reason,
)
from hellora.deployment.supervision import Child, Tell, deaf, kept_alive, under_supervisor
from hellora.deployment.turns import control_of, turn

START_SECONDS = 60.0  # that a server of our own may take to start
LOST_SECONDS = 300.0  # that a server may be away while a run is followed
LOOK_SECONDS = 1.0
BY_FLOWER = re.compile(r"\x1b\[\d+m[A-Z]+ *\x1b\[0m *:|Using SuperLink: |Successfully installed ")
RAISED = "raised an exception"
OUR_INPUT_ERROR = re.compile(re.escape(f"{InputError.__module__}.{InputError.__name__}: "))  # the end of a traceback
APPS = ("hellora.deployment.flower_app:server", "hellora.deployment.flower_app:client")


@dataclass(frozen=True)
class Submission:
    """Holds what the server's app is told. `out` is the run's folder below the server's runs, or an absolute path."""

    name: str
    experiment: Mapping[str, Any]
    out: str
    resume: bool
    simulation: bool
    apps: Sequence[str] = APPS  # of server and client
    from_round: int | None = None  # that a resumed run goes back to

    def settings(self) -> dict[str, Any]:
        """Make what Flower hands to the server's app."""
        return {
            "experiment": json.dumps(self.experiment),
            "name": self.name,
            "out": self.out,
            "resume": self.resume,
            "simulation": self.simulation,
            "from_round": -1 if self.from_round is None else self.from_round,  # Flower has no None
        }

    def write_bundle(self, folder: Path) -> Path:
        """Write the folder that `flwr run` packs and sends."""
        folder.mkdir(parents=True)
        table = {
            "project": {
                "name": "hellora-run",
                "version": __version__,
                "description": "A run of hellora",
                "license": {"file": "LICENSE"},
                "dependencies": ["flwr>=1.41"],
            },
            "tool": {
                "flwr": {
                    "app": {
                        "publisher": "hellora",
                        "fab-format-version": 1,
                        "flwr-version-target": importlib.metadata.version("flwr"),
                        "components": {"serverapp": self.apps[0], "clientapp": self.apps[1]},
                        "config": {key: type(value)() for key, value in self.settings().items()},
                    }
                }
            },
        }
        (folder / "pyproject.toml").write_text(tomli_w.dumps(table))
        (folder / "LICENSE").write_text("Apache-2.0: https://www.apache.org/licenses/LICENSE-2.0\n")
        return folder

    def submit(self, flower: Flower, engine: Mapping[str, float]) -> str:
        """Hand it to the server, and return the run's id. `engine` has the settings of Flower's simulation."""
        bundle = self.write_bundle(flower.home / "bundle")
        settings = flower.home / "settings.toml"
        settings.write_text(tomli_w.dumps(self.settings()))
        more = ["--federation-config", arguments_of(dict(engine))] if engine else []
        answer = flower.call("run", str(bundle), CONNECTION, "--run-config", str(settings), *more)
        return str(answer["run-id"])


# ---------------------------------------------------------------------------------------------------------- following


class OwnLines:
    """Tells which of a run's log lines are the app's own; and whether it raised an InputError of ours."""

    def __init__(self) -> None:
        self.raised = self.input_error = False

    def pick(self, line: str) -> bool:
        """Take a line of the log, and say whether it is one of the app's own."""
        by_flower = BY_FLOWER.match(line) is not None
        self.raised |= by_flower and RAISED in line  # a traceback follows, and nothing of the app's own
        self.input_error |= self.raised and OUR_INPUT_ERROR.match(line) is not None
        return not self.raised and not by_flower


@dataclass(frozen=True)
class Following:
    """Shows a run's own lines, until it has ended."""

    flower: Flower
    run: str
    show: Tell
    alive: Callable[[], bool] = lambda: True  # False where the server cannot come back

    def to_the_end(self) -> None:
        """Show the lines to the end. Raise what the run did, or RunError where it was stopped or the server is gone."""
        shown, lines = 0, OwnLines()
        while True:
            lines = OwnLines()
            for count, line in enumerate(self.log_lines()):
                if lines.pick(line) and count >= shown:
                    self.show(line)
                shown = max(shown, count + 1)
            status, details = self.status()
            if status.startswith("finished"):
                break
            time.sleep(LOOK_SECONDS)
        words = one_line(re.sub(r"^\w+ failed with exception: ", "", details))
        if status == "finished:completed":
            return
        if status == "finished:failed" and lines.input_error:
            raise InputError(words)
        raise RunError(words or f"the run ended as {status.partition(':')[2]}")

    def log_lines(self) -> Iterator[str]:
        """Yield all that the run has said so far, and what it says until it ends or the server goes away."""
        with subprocess.Popen(
            under_supervisor(self.flower.command("log", self.run, CONNECTION, "--stream")),
            env=environment(self.flower.home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    yield line.rstrip("\n")
            finally:
                process.stdin.close()
                process.stdin = None  # `with` would close it again

    def status(self) -> tuple[str, str]:
        """Return the run's status, such as "finished:failed", and why; ask again while the server is away."""
        until = time.monotonic() + LOST_SECONDS
        while True:
            try:
                (run,) = self.flower.call("list", CONNECTION, "--run-id", self.run)["runs"]
                return run["status"], run["status-details"]
            except RunError as error:
                if time.monotonic() > until or not self.alive():
                    raise RunError(f"the server is gone, and what became of the run is not known: {error}") from error
                time.sleep(LOOK_SECONDS)

    def stop(self) -> None:
        """Ask the server to end the run; it may have ended already."""
        with contextlib.suppress(RunError):
            self.flower.call("stop", self.run, CONNECTION)


# ----------------------------------------------------------------------------------------------------------- both ways


def run_at(server: Path, submission: Submission, show: Tell) -> None:
    """Run at the server with this folder when it is this run's turn, and follow it. An interruption stops the run.

    Raises:
        InputError: the server is not of this machine and user, or is not there, or refuses the experiment.
        RunError: the run had to stop.
    """
    program("flwr")
    if not control_of(server).reached():
        raise InputError(f"--federation {server}: nothing answers: is `hellora server {server}` running?")
    with PrivateFolder() as private:

        def flower() -> Flower:  # anew: the server may have been started again meanwhile
            return Flower.at(control_of(server), private.path)

        with turn(server, submission.out, show, lambda: left_running(flower(), server)):
            with deaf():  # an interruption meanwhile would leave a run that nobody follows
                following = Following(flower(), submission.submit(flower(), {}), show)
            try:
                following.to_the_end()
            except KeyboardInterrupt:
                following.stop()
                raise


def left_running(flower: Flower, server: Path) -> str | None:
    """Say what runs at a server though nobody follows it: whoever did was killed. None where nothing does."""
    runs = flower.call("list", CONNECTION)["runs"]
    left = [run["run-id"] for run in runs if not run["status"].startswith("finished")]
    if not left:
        return None
    stop = f"FLWR_HOME={server / 'flwr'} flwr stop {left[0]} {CONNECTION}"
    return f"waiting: run {left[0]} goes on, and nobody follows it (Ctrl-C leaves the queue; `{stop}` ends it)"


def simulate(submission: Submission, engine: Mapping[str, float], runs: Path, show: Tell) -> None:
    """Run on Flower's simulation engine, on this machine; nothing of it is left afterwards.

    `engine` has its settings, such as num-supernodes.

    Raises:
        InputError: the experiment does not fit.
        RunError: the run had to stop.
    """
    with PrivateFolder() as private:
        address = Address("127.0.0.1", free_port(), None)
        log = private.path / "superlink.log"
        where = ["--host", address.host, "--port", str(address.port)]
        superlink = Child(
            "Flower's simulation",
            lambda: [program("flower-superlink"), "--insecure", "--simulation", *where],
            environment(private.path / "flwr", HELLORA_RUNS=str(runs.resolve()), RAY_TMPDIR=str(private.path / "ray")),
            log=log,
        )
        with kept_alive([superlink]):
            superlink.start()
            wait_for(address, superlink)
            flower = Flower.at(address, private.path / "flwr")
            run = submission.submit(flower, engine)
            Following(flower, run, show, lambda: superlink.running).to_the_end()


def wait_for(address: Address, superlink: Child) -> None:
    until = time.monotonic() + START_SECONDS
    while not ("Uvicorn running" in superlink.output() and address.reached()):
        if not superlink.running or time.monotonic() > until:
            output = superlink.output()
            raise RunError(f"Flower's simulation does not start: {reason(output) or output.strip()[-300:]}")
        time.sleep(0.1)
