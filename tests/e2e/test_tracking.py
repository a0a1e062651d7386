"""Experiment trackers: what TensorBoard's files and a tracker of one's own are told of a run, and of a resumed one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusals import check_refusal

from hellora.client.work import ClientWork
from hellora.experiments.config import read_experiment
from hellora.runs.tracking import Tracking, config_of, values_of

Command = Callable[..., Any]
OWN = """
import json
from pathlib import Path

from accelerate.tracking import GeneralTracker

SAID = Path("said.jsonl")


class Notes(GeneralTracker):
    name = "notes"
    requires_logging_directory = {places}

    def __init__(self, project, *place):
        super().__init__()
        self.note("open", project, *place)

    @property
    def tracker(self):
        return SAID

    def note(self, *what):
        with SAID.open("a") as file:
            file.write(json.dumps(what) + "\\n")

    def store_init_configuration(self, values):
        self.note("config", values)

    def log(self, values, step):
        if Path("deaf").exists():
            raise ConnectionError("nobody\\nlistens")
        self.note("log", step, values)

    def finish(self):
        self.note("finish")
"""


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Any]]:
    """A working directory with a tracker of one's own; what it was told so far."""
    (tmp_path / "my_trackers.py").write_text(OWN.format(places=True))
    monkeypatch.chdir(tmp_path)
    return lambda: [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]


def stop_in_round(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    worked = ClientWork.train

    def train(self: ClientWork, task: Any) -> Any:
        if task.round == number:
            raise RuntimeError("out of memory")
        return worked(self, task)

    monkeypatch.setattr(ClientWork, "train", train)


LINE: dict[str, Any] = {
    "round": 4,
    "cohort": [1, 2, 5, 7],
    "updated": [1, 5],
    "missing": {"2": "not available"},
    "rejected": {"7": "RuntimeError"},
    "metrics": {"accuracy": 0.25, "loss": 1.5},
    "clients": {"1": {"loss": 1.0, "examples": 30}, "5": {"loss": 2.0, "examples": 10}},
    "aggregation_error": 0.125,
    "uplink_bytes": 100,
    "downlink_bytes": 400,
    "seconds": 2.5,
    "simulated_seconds": 60.0,
    "simulated_clock": 300.0,
}


def test_the_numbers_of_a_round() -> None:
    assert values_of(LINE, "test") == {
        "test/accuracy": 0.25,
        "test/loss": 1.5,
        "train/loss": 1.25,  # (1 · 30 + 2 · 10) / 40
        "bytes/up": 100,
        "bytes/down": 400,
        "time/seconds": 2.5,
        "time/simulated": 60.0,
        "time/simulated_clock": 300.0,
        "clients/asked": 4,
        "clients/updated": 2,
        "clients/missing": 1,
        "clients/rejected": 1,
        "aggregation_error": 0.125,
    }
    nothing = {"metrics": None, "clients": {}, "aggregation_error": None, "simulated_seconds": None}
    quiet = values_of({**LINE, **nothing, "simulated_clock": None}, "validation")
    assert quiet.keys() == {
        "bytes/up", "bytes/down", "time/seconds",
        "clients/asked", "clients/updated", "clients/missing", "clients/rejected",
    }  # fmt: skip


def test_tensorboard_has_every_round_once_though_the_run_was_killed_and_resumed(
    hellora: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the second round was told, and before that was noted: it is told again, and shown once."""
    from tensorboard.backend.event_processing import event_accumulator as accumulator

    out, tracking = tmp_path / "out", ("--set", "tracking.trackers=['tensorboard']")

    def kill(self: Tracking) -> None:
        if self.states["tensorboard"]["rounds"] == 2:
            raise KeyboardInterrupt
        save(self)

    save = Tracking.save
    with monkeypatch.context() as killing:
        killing.setattr(Tracking, "save", kill)
        assert hellora("run", small, "--out", out, *tracking).status == 130
    assert json.loads((out / "tracking" / "state.json").read_text())["tensorboard"]["rounds"] == 1
    answer = hellora("run", small, "--out", out, *tracking, "--resume")
    assert (answer.status, answer.err) == (0, "")
    events = accumulator.EventAccumulator(str(out / "tracking" / "tensorboard"))
    events.Reload()
    lines = lines_of(out)
    assert [line["round"] for line in lines] == [0, 1, 2]
    expected = [values_of(line, "test") for line in lines]
    assert set(events.Tags()["scalars"]) == set(expected[0])
    for tag in expected[0]:
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert found == [(i, pytest.approx(values[tag], rel=1e-6)) for i, values in enumerate(expected)], tag
    (parameters,) = (out / "tracking" / "tensorboard").glob("*/hparams.yml")  # of the run, and not again of its resume
    assert "train.lr: 0.03" in parameters.read_text()


def test_a_tracker_of_ones_own_is_told_the_same(
    hellora: Command, small: Path, tmp_path: Path, own: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    settings = ["--set", "tracking.trackers=['my_trackers.py:Notes']", "--set", "tracking.project=trial"]
    with monkeypatch.context() as stopping:
        stop_in_round(2, stopping)
        assert hellora("run", small, "--out", out, *settings).status == 1
    assert hellora("run", small, "--out", out, *settings, "--resume").status == 0
    said, lines = own(), lines_of(out)
    opened = ["open", "trial", str(out / "tracking")]
    kinds = [opened, "config", "log", "log", "finish", opened, "log", "finish"]
    assert [what if what[0] == "open" else what[0] for what in said] == kinds
    logged = [what[1:] for what in said if what[0] == "log"]
    assert logged == [[line["round"], values_of(line, "test")] for line in lines]
    config = said[1][1]
    assert config == config_of(read_experiment(str(small), {}).table) | {
        "tracking.trackers": json.dumps([f"{tmp_path}/my_trackers.py:Notes"]),
        "tracking.project": "trial",
    }
    assert (config["model.rank"], config["fleet.layers"], config["rounds"]) == (4, "[1, 2, 4]", 3)


def test_a_tracker_may_be_added_or_left_out_when_a_run_is_resumed(
    hellora: Command, small: Path, tmp_path: Path, own: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as stopping:
        stop_in_round(1, stopping)
        assert hellora("run", small, "--out", out).status == 1
    with monkeypatch.context() as stopping:
        stop_in_round(2, stopping)
        added = ("--set", "tracking.trackers=['my_trackers.py:Notes']")
        assert hellora("run", small, "--out", out, "--resume", *added).status == 1
    assert hellora("run", small, "--out", out, "--resume").status == 0
    assert [what[1] for what in own() if what[0] == "log"] == [0, 1], "what was before it came, too"


def test_a_tracker_that_fails_does_not_stop_the_run_and_is_told_later(
    hellora: Command, small: Path, tmp_path: Path, own: Callable[[], list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "deaf").touch()
    settings = ["--set", "tracking.trackers=['my_trackers.py:Notes']"]
    assert hellora("run", small, "--out", tmp_path / "out", *settings).status == 0
    said = [record.getMessage() for record in caplog.records if record.name == "hellora.runs.tracking"]
    notes = f"{tmp_path}/my_trackers.py:Notes"
    assert said == [f"{notes} was not told of round 0: ConnectionError: nobody listens"] * 3
    (tmp_path / "deaf").unlink()
    state = json.loads((tmp_path / "out" / "tracking" / "state.json").read_text())
    told = Tracking(tmp_path / "out" / "tracking", "test")
    told.open(read_experiment(str(small), {"tracking.trackers": ["my_trackers.py:Notes"]}), "out", 3)
    told.tell(lines_of(tmp_path / "out"))
    assert state[notes]["rounds"] == 0
    assert [what[1] for what in own() if what[0] == "log"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("trackers", "words"),
    [
        ("['tensorbord']", "tracking.trackers: there is no tracker 'tensorbord': did you mean 'tensorboard'?"),
        ("['swanlab']", "tracking.trackers: swanlab is not installed: pip install swanlab"),
        ("['nothing:Here']", "tracking.trackers: 'nothing:Here' cannot be imported"),
        ("['json:JSONDecoder']", "tracking.trackers: 'json:JSONDecoder' is no GeneralTracker of accelerate's"),
        ("['tensorboard','tensorboard']", "trackers names one twice"),
        ("tensorboard", 'tracking.trackers is a list: write tracking.trackers = ["tensorboard"]'),
    ],
)
def test_a_wrong_tracker_is_refused_before_anything_is_loaded(
    hellora: Command, small: Path, tmp_path: Path, trackers: str, words: str
) -> None:
    broken = ("--set", "data.name=nobody/has-this")
    answer = hellora("run", small, "--out", tmp_path / "out", "--set", f"tracking.trackers={trackers}", *broken)
    check_refusal(answer, words)
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_cannot_start_is_refused_before_training(
    hellora: Command, small: Path, tmp_path: Path, own: Callable[[], list[Any]]
) -> None:
    (tmp_path / "my_trackers.py").write_text(
        OWN.format(places=False) + '\n    def start(self):\n        raise OSError("no key")\n'
    )
    answer = hellora("run", small, "--out", tmp_path / "out", "--set", "tracking.trackers=['my_trackers.py:Notes']")
    check_refusal(
        answer, f"tracking.trackers: {tmp_path}/my_trackers.py:Notes cannot start: OSError: no key: leave it out?"
    )
    assert own() == [["open", "hellora"], ["finish"]]
    assert not (tmp_path / "out").exists()
