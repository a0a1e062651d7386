"""The commands around Flower with its real engines, and with apps and a trainer that only pretend."""

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest
import tomli_w

from hellora.core.errors import RunError
from hellora.deployment.federated_run import Submission
from hellora.deployment.flower_tools import CONNECTION, Address, Flower, free_port

pytestmark = [pytest.mark.flower, pytest.mark.slow, pytest.mark.xdist_group("federation")]

APPS = """
import os, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from hellora.core.errors import InputError, RunError

server = ServerApp()
client = ClientApp()

@client.query()
def who(message, context):
    return Message(RecordDict({"me": ConfigRecord(dict(context.node_config))}), reply_to=message)

@server.main()
def main(grid, context):
    config = context.run_config
    print("runs", os.environ["HELLORA_RUNS"], "out", config["out"], "resume", config["resume"], flush=True)
    count = 3 if config["simulation"] else 2
    while len(nodes := list(grid.get_node_ids())) < count:
        time.sleep(0.2)
    nothing = RecordDict({"none": ConfigRecord({})})
    messages = [Message(nothing, dst_node_id=node, message_type="query") for node in nodes]
    waiting = set(grid.push_messages(messages))
    while waiting:
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            print("client", dict(reply.content["me"]), flush=True)
        time.sleep(0.1)
    if config["name"] == "wrong":
        raise InputError("data.name: there is no such thing")
    if config["name"] == "stops":
        raise RunError("round 1: too few answers")
    if config["name"] == "long":
        time.sleep(300)
"""
DRIVER = """
import functools, sys
from pathlib import Path
import hellora.deployment.client_process, hellora.deployment.federated_run
from hellora.cli.app import main

hellora.deployment.client_process.Client = functools.partial(
    hellora.deployment.client_process.Client,
    trainer=(sys.executable, "-c", "import sys; sys.stdin.read()"),
    app="pretended:client",
)
hellora.deployment.federated_run.Submission = functools.partial(
    hellora.deployment.federated_run.Submission, apps=("pretended:server", "pretended:client")
)
main()
"""


def wait_for(condition: Callable[[], object], seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@dataclass
class Place:
    """A folder to run hellora in; every process that comes of it carries a mark in its environment."""

    folder: Path
    temporary: Path  # with a short name, for sockets are in it
    mark: str

    @property
    def environment(self) -> dict[str, str]:
        above = str(Path(__file__).parents[2])
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([above, str(self.folder)]),  # of the apps that pretend
            "PYTHONUNBUFFERED": "1",
            "HELLORA_TEST": self.mark,
            "TMPDIR": str(self.temporary),
        }

    def start(self, log: str, *arguments: object) -> "subprocess.Popen[bytes]":
        with (self.folder / log).open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "driver.py", *map(str, arguments)],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def run(self, *arguments: object) -> tuple[int, str]:
        """Status and output of a command."""
        process = self.start("command.log", *arguments)
        return process.wait(300), self.said("command.log")

    def said(self, log: str) -> str:
        return (self.folder / log).read_text()

    def processes(self) -> dict[int, str]:
        """Every process that is of this place, by id, and its command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and f"HELLORA_TEST={self.mark}" in (entry / "environ").read_text():
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
        return found


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    (folder / "pretended.py").write_text(APPS)
    (folder / "driver.py").write_text(DRIVER)
    (folder / "mine.csv").write_text("text,label\nx,a\n")
    for name in ("fine", "wrong", "stops", "long"):
        table = {
            "rounds": 1,
            "cohort": 1,
            "data": {"clients": 3},
            "fleet": {"layers": [1]},
            "compute": {"device": "cpu"},
        }
        (folder / f"{name}.toml").write_text(tomli_w.dumps(table))
    with TemporaryDirectory(prefix="h-") as temporary:
        yield Place(folder, Path(temporary), uuid4().hex)


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Place]:
    """A server and two clients; nothing of them is left at the end."""
    with place(tmp_path_factory.mktemp("federation")) as here:
        yield from serving(here, port)


def serving(here: Place, port: int) -> Iterator[Place]:
    names = ["--client", "hospital", "--client", "clinic"]
    assert here.run("certificates", "keys", *names)[0] == 0
    server = here.start("server.log", "server", "state", "--port", port, "--certificates", "keys", "--runs", "results")
    clients = [here.start(f"{name}.log", *client(name, port)) for name in ("hospital", "clinic")]
    try:
        for name in ("hospital", "clinic"):
            wait_for(lambda name=name: f"{name}: connected" in here.said(f"{name}.log"))
        yield here
        assert [process.poll() for process in (server, *clients)] == [None, None, None]
    finally:
        clients[0].kill()  # the hard way
        for process in (clients[1], server):
            process.terminate()
        statuses = [process.wait(60) for process in (*clients, server)]
        wait_for(lambda: not here.processes(), 20)
    assert statuses == [-signal.SIGKILL, 0, 0]
    with socket.create_server(("127.0.0.1", port)):
        pass  # the port is free


def client(name: str, port: int, **changes: object) -> list[object]:
    options = {
        "--server": f"127.0.0.1:{port}",
        "--name": name,
        "--key": f"keys/clients/{name}",
        "--certificate": "keys/ca.crt",
        "--data": "mine.csv",
        **{f"--{key}": value for key, value in changes.items()},
    }
    return ["client", *(part for option in options.items() if option[1] is not None for part in option)]


def submission(name: str) -> list[object]:
    return ["run", f"{name}.toml", "--federation", "state"]


def test_a_run_that_completes(federation: Place) -> None:
    status, output = federation.run(*submission("fine"), "--out", "mine")
    assert status == 0, output
    lines = output.splitlines()
    assert lines[0] == "fine → mine at state"
    assert lines[1] == f"runs {federation.folder / 'results'} out mine resume False"
    assert sorted(line.partition("'name': ")[2][:6] for line in lines[2:-1]) == ["'clini", "'hospi"]
    assert all("trainer.sock" in line for line in lines[2:-1])
    assert lines[-1] == "adapter: mine/adapter in the server's folder of runs"


def test_runs_that_fail(federation: Place) -> None:
    status, output = federation.run(*submission("wrong"))
    assert (status, output.splitlines()[-1]) == (2, "error: data.name: there is no such thing")
    assert "Traceback" not in output
    status, output = federation.run(*submission("stops"))
    again = "go on with: hellora run stops.toml --federation state --out stops"
    assert (status, output.splitlines()[-2:]) == (1, [f"{again} --resume", "error: round 1: too few answers"])


def test_an_interrupted_run_is_stopped(federation: Place) -> None:
    run = federation.start("long.log", *submission("long"))
    wait_for(lambda: federation.said("long.log").count("'name'") == 2)
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 130
    assert "stopped; go on with: hellora run long.toml" in federation.said("long.log")
    wait_for(lambda: not any("flwr-serverapp" in command for command in federation.processes().values()))


def test_who_is_not_admitted(federation: Place, port: int) -> None:
    """A key that the server does not know, one that is in use, one's own CA, and plain text."""
    assert federation.run("certificates", "others", "--client", "stranger")[0] == 0
    stranger = federation.start("stranger.log", *client("stranger", port, key="others/clients/stranger"))
    copy = federation.start("copy.log", *client("copy", port, key="keys/clients/clinic"))
    for process, name in ((stranger, "stranger"), (copy, "copy")):
        wait_for(lambda name=name: f"does not admit {name}" in federation.said(f"{name}.log"))
        process.terminate()
        assert process.wait(60) == 0
        assert "connected" not in federation.said(f"{name}.log")
    status, output = federation.run(*client("clinic", port, certificate="others/ca.crt", folder="elsewhere"))
    assert status == 2
    assert "take the ca.crt of that server" in output
    plain = [*client("clinic", port, certificate=None, key=None, folder="elsewhere"), "--insecure"]
    status, output = federation.run(*plain)
    assert status == 2
    assert "does not speak plain text" in output


def test_who_is_admitted_later(federation: Place, port: int) -> None:
    assert federation.run("certificates", "keys", "--client", "late")[0] == 0
    wait_for(lambda: "admitted late" in federation.said("server.log"))
    late = federation.start("late.log", *client("late", port))
    wait_for(lambda: "late: connected" in federation.said("late.log"))
    late.terminate()
    assert late.wait(60) == 0


def test_who_runs_code_from_elsewhere(federation: Place, port: int, tmp_path: Path) -> None:
    """The attack that worked: with the server's ca.crt, and no key at all, Flower's own commands at its public port."""
    attacker = Flower.at(Address("127.0.0.1", port, federation.folder / "keys" / "ca.crt"), tmp_path / "flwr")
    bundle = Submission("evil", {}, "evil", False, False, ("pretended:server", "pretended:client"))
    for attack in (
        lambda: attacker.call("list", CONNECTION),
        lambda: bundle.submit(attacker, {}),
        lambda: attacker.call("supernode", "list", CONNECTION),
    ):
        with pytest.raises(RunError):
            attack()
    assert "refused 'POST' '/v1/control/" in federation.said("state/door.log")
    assert not (federation.folder / "results" / "evil").exists()


def test_a_second_run_waits_its_turn(federation: Place) -> None:
    first = federation.start("first.log", *submission("long"), "--out", "first")
    wait_for(lambda: federation.said("first.log").count("\n") > 1, 240)  # it has begun
    second = federation.start("second.log", *submission("fine"), "--out", "second")
    wait_for(lambda: "waiting: first runs; place 1 in the queue" in federation.said("second.log"))
    third = federation.start("third.log", *submission("fine"), "--out", "third")
    wait_for(lambda: "place 2 in the queue" in federation.said("third.log"))
    third.send_signal(signal.SIGINT)
    assert third.wait(60) == 130
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    assert second.wait(120) == 0, federation.said("second.log")
    assert list((federation.folder / "state" / "turns").iterdir()) == [federation.folder / "state/turns/gate.lock"]


def test_a_revoked_client_stops_and_a_new_key_is_let_in(federation: Place, port: int) -> None:
    assert federation.run("certificates", "keys", "--client", "ward")[0] == 0
    wait_for(lambda: "admitted ward" in federation.said("server.log"))
    shutil.copy(federation.folder / "keys/clients/ward", federation.folder / "ward.key")
    ward = federation.start("ward.log", *client("ward", port, key="ward.key"))
    wait_for(lambda: "ward: connected" in federation.said("ward.log"))
    assert federation.run("certificates", "keys", "--revoke", "ward")[0] == 0
    wait_for(lambda: "revoked ward" in federation.said("server.log"))
    assert ward.wait(120) == 2
    assert federation.said("ward.log").count("for good: ward's key was revoked") == 1
    assert federation.run("certificates", "keys", "--client", "ward")[0] == 0
    ward = federation.start("ward.log", *client("ward", port))
    wait_for(lambda: "ward: connected" in federation.said("ward.log"))
    ward.terminate()
    assert ward.wait(60) == 0


def test_a_renewed_certificate_is_shown_without_a_restart(federation: Place, port: int) -> None:
    def shown() -> str:
        return ssl.get_server_certificate(("127.0.0.1", port))

    before = shown()
    assert federation.run("certificates", "keys", "--renew")[0] == 0
    wait_for(lambda: shown() != before)
    assert Address("127.0.0.1", port, federation.folder / "keys" / "ca.crt").reached()


def test_a_killed_superlink_comes_back(federation: Place) -> None:
    (superlink,) = (
        pid
        for pid, command in federation.processes().items()
        if "flower-superlink" in command and "supervisor.py" not in command
    )
    os.kill(superlink, signal.SIGKILL)
    wait_for(lambda: "the SuperLink ended" in federation.said("server.log"))
    wait_for(lambda: federation.run(*submission("fine"))[0] == 0)


def test_flowers_simulation_leaves_nothing(tmp_path: Path) -> None:
    with place(tmp_path) as here:
        status, output = here.run("run", "fine.toml", "--backend", "flower", "--out", "out/mine")
        assert status == 0, output
        assert output.splitlines()[1] == f"runs {tmp_path / 'out'} out {tmp_path / 'out' / 'mine'} resume False"
        assert sum("partition-id" in line for line in output.splitlines()) == 3
        status, output = here.run("run", "wrong.toml", "--backend", "flower")
        assert (status, output.splitlines()[-1]) == (2, "error: data.name: there is no such thing")
        assert here.processes() == {}
        assert list(here.temporary.iterdir()) == []
