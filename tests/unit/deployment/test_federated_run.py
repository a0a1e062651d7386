"""What is sent to Flower, and what is read of its answers."""

import json
import tomllib
from pathlib import Path

import pytest

from hellora.core.errors import InputError, RunError
from hellora.deployment.federated_run import Following, OwnLines, Submission
from hellora.deployment.flower_setup import contract_of
from hellora.deployment.flower_tools import Address, Flower, arguments_of, environment, last_json, reason
from hellora.experiments.config import read_experiment

pytestmark = pytest.mark.flower

SUBMISSION = Submission("mine", {"rounds": 3, "data": {"name": 'a "b" \\ é'}}, "mine-2", resume=True, simulation=False)
FAILED = """Using SuperLink: hellora (127.0.0.1:8553)
\x1b[92mINFO \x1b[0m:      Start `flwr-serverapp` process
Successfully installed hellora-run to /x.
round   0  accuracy 0.315
\x1b[93mWARNING \x1b[0m:   noise
INFO of our own
\x1b[91mERROR \x1b[0m:     {who} raised an exception
Traceback (most recent call last):
  File "x.py", line 22, in main
hellora.core.errors.{what}: data.name: nothing there
\x1b[91mERROR \x1b[0m:     Exit Code: 201

An unhandled exception occurred in the ServerApp.
"""


def test_the_bundle_names_the_apps_and_holds_no_code(tmp_path: Path) -> None:
    folder = SUBMISSION.write_bundle(tmp_path / "bundle")
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSE", "pyproject.toml"]
    app = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["components"] == {
        "serverapp": "hellora.deployment.flower_app:server",
        "clientapp": "hellora.deployment.flower_app:client",
    }
    assert app["config"] == {
        "experiment": "",
        "name": "",
        "out": "",
        "resume": False,
        "simulation": False,
        "from_round": 0,
    }


def test_the_settings_carry_the_whole_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def call(_: Flower, *arguments: str) -> dict[str, str]:
        calls.append(arguments)
        return {"run-id": "77"}

    monkeypatch.setattr(Flower, "call", call)
    flower = Flower.at(Address("127.0.0.1", 8443, None), tmp_path)
    assert SUBMISSION.submit(flower, {"num-supernodes": 5, "client-resources-num-gpus": 0.5}) == "77"
    command, bundle, connection, _, settings, _, engine = calls[0]
    assert (command, connection) == ("run", "hellora")
    assert Path(bundle, "pyproject.toml").is_file()
    told = tomllib.loads(Path(settings).read_text())
    assert json.loads(told.pop("experiment")) == SUBMISSION.experiment
    assert told == {"name": "mine", "out": "mine-2", "resume": True, "simulation": False, "from_round": -1}
    assert engine == "num-supernodes=5 client-resources-num-gpus=0.5"


@pytest.mark.parametrize("who", ["ServerApp", "Simulation"])
@pytest.mark.parametrize("what", ["InputError", "RunError"])
def test_of_a_log_only_the_apps_own_lines_are_shown(who: str, what: str) -> None:
    lines = OwnLines()
    shown = [line for line in FAILED.format(who=who, what=what).splitlines() if lines.pick(line)]
    assert shown == ["round   0  accuracy 0.315", "INFO of our own"]
    assert lines.input_error is (what == "InputError")


class Scripted(Following):
    """A run whose log and statuses are given."""

    logs: list[list[str]]
    statuses: list[tuple[str, str]]

    def log_lines(self):
        return iter(self.logs.pop(0))

    def status(self):
        return self.statuses.pop(0)


def follow(tmp_path: Path, logs: list[list[str]], statuses: list[tuple[str, str]]) -> list[str]:
    shown: list[str] = []
    following = Scripted(Flower(tmp_path), "77", shown.append)
    object.__setattr__(following, "logs", logs)
    object.__setattr__(following, "statuses", statuses)
    following.to_the_end()
    return shown


def test_after_a_break_the_log_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hellora.deployment.federated_run.LOOK_SECONDS", 0.0)
    logs = [["a", "b"], ["a"], ["a", "b", "c"]]
    statuses = [("running", ""), ("running", ""), ("finished:completed", "")]
    assert follow(tmp_path, logs, statuses) == ["a", "b", "c"]


@pytest.mark.parametrize(("what", "error"), [("InputError", InputError), ("RunError", RunError)])
def test_a_failed_run_fails_here_likewise(tmp_path: Path, what: str, error: type[Exception]) -> None:
    log = FAILED.format(who="ServerApp", what=what).splitlines()
    with pytest.raises(error, match=r"^data.name: nothing there$"):
        follow(tmp_path, [log], [("finished:failed", "ServerApp failed with exception: data.name:\nnothing there")])


def test_a_stopped_run_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the run ended as stopped"):
        follow(tmp_path, [[]], [("finished:stopped", "")])


def test_the_reason_of_an_end_is_what_follows_the_exit_code() -> None:
    text = "\x1b[91mERROR \x1b[0m:     Exit Code: 305\nFailed to connect.\n[code: 2004] No.\n\nFor more information\n"
    assert reason(text) == "Failed to connect. [code: 2004] No. (Flower's exit code 305)"
    assert reason("Traceback") == ""


def test_an_answer_is_the_json_that_ends_it() -> None:
    assert last_json('note: {x}\n{\n  "success": true\n}\n') == {"success": True}
    assert last_json("no answer") == {}


def test_settings_on_a_command_line_are_toml() -> None:
    text = arguments_of({"name": "n1", "trainer": "/tmp/x y/z.sock", "count": 2, "log": False})
    assert text == 'name="n1" trainer="/tmp/x y/z.sock" count=2 log=false'


def test_no_process_of_flower_reports_installs_or_leaves_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "intranet")
    told = environment(tmp_path, HELLORA_RUNS="/runs")
    assert told["FLWR_TELEMETRY_ENABLED"] == "0"
    assert told["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert told["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert told["FLWR_HOME"] == str(tmp_path)
    assert told["HELLORA_RUNS"] == "/runs"
    assert told["NO_PROXY"] == "intranet,localhost,127.0.0.1,::1"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("a.example:8443", "a.example", 8443), ("10.0.0.7:1", "10.0.0.7", 1), ("[::1]:9", "::1", 9)],
)
def test_addresses(text: str, host: str, port: int) -> None:
    address = Address.parse(text, "--server", None, insecure=True)
    assert (address.host, address.port, str(address)) == (host, port, text)


def test_nobody_answers() -> None:
    assert not Address("127.0.0.1", 1, None).reached()


def test_what_the_server_measures_by_is_not_told_to_clients() -> None:
    """They need not have the code of a metric; the server's own experiment keeps it."""
    experiment = read_experiment("quickstart", {"task.metrics": ["matthews", "math:hypot"]})
    assert contract_of(experiment).table == {**experiment.table, "task": {**experiment.table["task"], "metrics": []}}
    assert experiment.table["task"]["metrics"] == ["matthews", "math:hypot"]
