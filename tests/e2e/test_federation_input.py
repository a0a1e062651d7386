"""Commands around Flower with input that cannot work: one line that says what to do, status 2, and nothing started."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusals import check_refusal

from hellora.deployment.flower_tools import Address, free_port
from hellora.deployment.server_process import Server
from hellora.deployment.turns import note_control

pytestmark = pytest.mark.flower
Command = Callable[..., Any]


@pytest.fixture
def keys(hellora: Command, tmp_path: Path) -> Path:
    assert hellora("certificates", tmp_path / "keys", "--client", "hospital").status == 0
    return tmp_path / "keys"


@pytest.fixture
def client(keys: Path, tmp_path: Path) -> dict[str, object]:
    """Options of a client that could start."""
    (tmp_path / "mine.csv").write_text("text,label\nx,a\n")
    return {
        "--server": "127.0.0.1:1",
        "--name": "hospital",
        "--key": keys / "clients" / "hospital",
        "--certificate": keys / "ca.crt",
        "--data": tmp_path / "mine.csv",
        "--folder": tmp_path / "state",
    }


def flat(options: dict[str, object]) -> list[object]:
    return [part for option in options.items() if option[1] is not None for part in option]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--server": None}, ["client: needs --server, --name and --data", "hellora client --help"]),
        ({"--name": None}, ["client: needs --server, --name and --data"]),
        ({"--data": None}, ["client: needs --server, --name and --data"]),
        ({"--server": "server"}, ["--server 'server'", "HOST:PORT"]),
        ({"--server": "server:99999"}, ["HOST:PORT"]),
        ({"--name": "a b"}, ["--name 'a b'"]),
        ({"--key": "keys/clients/hospital.pub"}, ["--key", "looks like the public one", "without .pub"]),
        ({"--key": "keys/ca.crt"}, ["--key", "is no private key"]),
        ({"--key": "absent"}, ["--key: there is no file absent"]),
        ({"--key": None}, ["needs --key"]),
        ({"--certificate": "mine.csv"}, ["--certificate", "is no certificate"]),
        ({"--certificate": None}, ["--server needs --certificate"]),
        ({"--data": "absent.csv"}, ["--data: there is no file or folder absent.csv"]),
        ({"--set": "train.lr=1"}, ["--set train.lr", "only data."]),
        ({"--set": "data.name=x"}, ["--set data.name", "--data its source"]),
        ({"--memory": "6"}, ["--memory: '6' has no unit"]),
        ({"--uplink": "much"}, ["--uplink: 'much' is no size"]),
        ({"--link": "1"}, ["--link: '1' has no unit"]),
        ({"--layers": 0}, ["--layers 0"]),
        ({"--rank": 0}, ["--rank 0"]),
        ({"--seconds": 0}, ["--seconds 0"]),
        ({"--seconds": 60}, ["--seconds needs --speed"]),
        ({"--speed": "nan"}, ["--speed nan"]),
        ({"--columns": "body,,topic"}, ["--columns 'body,,topic'", "commas"]),
        ({"--max-steps": 0}, ["--max-steps 0"]),
        ({"--threads": 0}, ["--threads 0"]),
        ({"--model": "keys"}, ["--model: keys has no config.json"]),
    ],
    ids=lambda value: " ".join(map(str, *value.items())) if isinstance(value, dict) else "",
)
def test_a_client(
    hellora: Command, client: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object], words: list[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    check_refusal(hellora("client", *flat(client | changes)), *words)
    assert not (tmp_path / "state").exists()


def test_a_model_of_a_client_that_has_none(hellora: Command, tmp_path: Path) -> None:
    check_refusal(hellora("client", "export", tmp_path, tmp_path / "out"), "has no model of a client's own")
    assert not (tmp_path / "out").exists()


def test_a_secure_client_at_an_insecure_port_and_the_reverse(hellora: Command, client: dict[str, object]) -> None:
    both = hellora("client", *flat(client), "--insecure")
    check_refusal(both, "--insecure and --certificate exclude each other")
    with_key = hellora("client", *flat(client | {"--certificate": None}), "--insecure")
    check_refusal(with_key, "--key: an insecure server asks for none")


def test_a_server(hellora: Command, keys: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    check_refusal(hellora("server", state), "needs --certificates FOLDER", "--insecure")
    check_refusal(hellora("server", state, "--certificates", keys, "--insecure"), "exclude each other")
    check_refusal(hellora("server", state, "--certificates", tmp_path), "has no ca.crt", "hellora certificates")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check_refusal(
            hellora("server", state, "--certificates", keys, "--port", port), f"cannot listen on 127.0.0.1:{port}"
        )
    assert not state.exists()


def test_a_run_at_a_server(hellora: Command, small: Path, tmp_path: Path) -> None:
    at = ["--federation", tmp_path]
    check_refusal(hellora("run", small, *at), "is not the folder of a `hellora server`", "as its user")
    note_control(tmp_path, Address("127.0.0.1", 1, None))
    check_refusal(hellora("run", small, *at), "nothing answers", f"hellora server {tmp_path}")
    check_refusal(hellora("run", small, *at, "--out", "../x"), "--out ../x", "below the server's folder of runs")
    check_refusal(hellora("run", small, *at, "--backend", "flower"), "exclude each other")
    check_refusal(hellora("run", small, *at, "--set", "train.lr=no"), "train.lr")
    check_refusal(hellora("run", small, "--backend", "cloud"), "--backend 'cloud': it is local or flower")


def test_without_flower_the_commands_say_what_to_install(
    hellora: Command, small: Path, client: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hellora.deployment.flower_tools.BIN", tmp_path)
    for command in (
        ["server", tmp_path / "state", "--insecure"],
        ["client", *flat(client)],
        ["run", small, "--federation", tmp_path],
        ["run", small, "--backend", "flower", "--out", tmp_path / "out"],
    ):
        check_refusal(hellora(*command), "Flower is not installed here", "pip install 'hellora[flower]'")
    assert not (tmp_path / "out").exists()


def test_the_trainer_is_told_what_was_asked_for(tmp_path: Path) -> None:
    from hellora.deployment.client_process import Client, bound_settings, budget_settings, data_settings
    from hellora.deployment.flower_tools import Address

    (tmp_path / "mine.csv").touch()
    me = Client(
        Address("server", 8443, None),
        "hospital",
        None,
        data_settings(str(tmp_path / "mine.csv"), ["data.text=body", "data.label=topic"]),
        budget_settings("6GiB", 4, None, "5MB", 60.0, 5e11, None),
        "cpu",
        None,
        tmp_path / "state",
        bound_settings("body,topic", ["minilm"], 100, 64, 2),
        ["near.py:Near"],
    )
    assert json.loads(json.dumps(me.for_trainer(tmp_path / "t.sock"))) == {
        "name": "hospital",
        "socket": str(tmp_path / "t.sock"),
        "data": {"name": str(tmp_path / "mine.csv"), "text": "body", "label": "topic"},
        "memory": "6GiB",
        "layers": 4,
        "rank": None,
        "uplink": "5MB",
        "seconds": 60.0,
        "speed": 5e11,
        "link": None,
        "device": "cpu",
        "model": None,
        "folder": str(tmp_path / "state"),
        "columns": ["body", "topic"],
        "models": ["minilm"],
        "max_steps": 100,
        "max_batch": 64,
        "threads": 2,
        "allow": ["near.py:Near"],
    }


def test_every_start_of_the_supernode_has_a_port_that_is_free_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hellora.deployment.client_process import Client
    from hellora.deployment.flower_tools import Address

    ports = iter([20_001, 20_002])
    monkeypatch.setattr("hellora.deployment.client_process.free_port", lambda: next(ports))
    me = Client(Address("server", 8443, None), "clinic", None, {}, {}, "cpu", None, tmp_path)
    commands = [" ".join(me.node_command(tmp_path / "t.sock")) for _ in range(2)]
    assert ["--port 20001" in commands[0], "--port 20002" in commands[1]] == [True, True]
    assert "taken by another process" in me.why_it_ended("[Errno 98] address already in use")


def test_what_will_not_change_by_itself_ends_a_client_and_the_rest_is_told(tmp_path: Path) -> None:
    from hellora.core.errors import InputError
    from hellora.deployment.client_process import Client
    from hellora.deployment.flower_tools import Address

    me = Client(Address("server", 8443, None), "clinic", None, {}, {}, "cpu", None, tmp_path)
    with pytest.raises(InputError, match="does not vouch for"):
        me.why_it_ended("Exit Code: 305\nno\n[SSL: CERTIFICATE_VERIFY_FAILED] self-signed\n\n")
    text = "Exit Code: 305\nFailed.\n[code: 2004] Failed to activate SuperNode.\n\n"
    assert "must have clients/clinic.pub of this very key" in me.why_it_ended(text)
    assert me.why_it_ended("Exit Code: 600\nBad address.\n\n") == (
        f"the SuperNode ended: Bad address. (Flower's exit code 600) (see {tmp_path / 'supernode.log'})"
    )


def test_the_superlink_listens_on_this_machine_only_and_the_door_where_it_was_asked(keys: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, "0.0.0.0", 8443, keys, tmp_path / "runs", 8080, inner_port=20_001)
    command = " ".join(server.superlink_command())
    assert "--host 127.0.0.1 --port 20001" in command
    assert "0.0.0.0" not in command
    assert "--enable-supernode-auth" in command
    server.make_loopback()
    door = json.loads(server.write_door().read_text())
    assert (door["host"], door["port"], door["health_port"]) == ("0.0.0.0", 8443, 8080)
    assert door["superlink"] == "https://127.0.0.1:20001"
    assert door["authority"] == str(tmp_path / "loopback" / "ca.crt"), "no file that a client has"
    assert Path(door["authority"]).read_bytes() != (keys / "ca.crt").read_bytes()


def test_a_server_that_starts_again_has_its_superlink_where_it_was(keys: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, "127.0.0.1", 8443, keys, tmp_path / "runs")
    note_control(tmp_path, Address("127.0.0.1", port := free_port(), None))
    assert server.port_inside() == port
    with socket.create_server(("127.0.0.1", port)):
        assert server.port_inside() != port
