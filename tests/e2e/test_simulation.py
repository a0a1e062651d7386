"""`hellora run` with simulated devices: what is on record of their times, and of who was left behind."""

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from hellora.experiments.config import read_experiment
from hellora.experiments.planning import fleet
from hellora.record.round_line import Line
from hellora.runs.run import run_experiment

Command = Callable[..., Any]
# The tiny BERT: query and value of 4 layers, each A (rank, 32) and B (32, rank); a head of 3 × 32 weights and 3 biases.
VALUES_PER_RANK, HEAD_VALUES, LAYERS, RANK = 2 * (32 + 32), 3 * 32 + 3, 4, 4
DOWN = 4 * (LAYERS * RANK * VALUES_PER_RANK + HEAD_VALUES)  # bytes to a client

DEVICES = {"fleet.speed": [1e8, 1e7, 1e6], "fleet.link": ["1MB/s", "10KB", "5KB"]}
STRAGGLERS = {**DEVICES, "fleet.availability": [0.7, 0.9, 1.0], "deadline": 17.0, "over_select": 1.5, "rounds": 5}


def with_settings(settings: dict[str, Any]) -> list[str]:
    return [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def lines_of(folder: Path) -> list[Line]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def summary_of(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def measured(line: Line) -> Line:
    """A line less what is measured of this machine."""
    clients = {
        client: {key: value for key, value in values.items() if key not in ("seconds", "peak_bytes")}
        for client, values in line["clients"].items()
    }
    return {**line, "clients": clients, "seconds": None}


@pytest.fixture
def stragglers(hellora: Command, small: Path, tmp_path: Path) -> Path:
    """A run in which clients are away, too late, and surplus."""
    out = tmp_path / "stragglers"
    answer = hellora("run", small, "--out", out, *with_settings(STRAGGLERS))
    assert (answer.status, answer.err) == (0, "")
    return out


def test_every_round_has_its_simulated_seconds(hellora: Command, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = hellora("run", small, "--out", out, *with_settings(DEVICES))
    assert (answer.status, answer.err) == (0, "")
    lines = lines_of(out)
    links = {p.id: p.link for p in fleet(read_experiment(str(out / "experiment.toml")), [1] * 6)}
    assert set(links.values()) == {1e6, 1e4, 5e3}
    for line in lines:
        for client, values in line["clients"].items():
            up = 4 * (sum(line["ranks"][client]) * VALUES_PER_RANK + HEAD_VALUES)
            seconds = (DOWN + up) / links[int(client)] + values["predicted_seconds"]
            assert values["simulated_seconds"] == pytest.approx(seconds, abs=0.002)
        assert line["simulated_seconds"] == max(values["simulated_seconds"] for values in line["clients"].values())
    times = list(accumulate(line["simulated_seconds"] for line in lines))
    assert [line["simulated_clock"] for line in lines] == pytest.approx(times, abs=1e-6)
    assert summary_of(out)["simulated_seconds"] == lines[-1]["simulated_clock"]
    assert f"simulated {times[-1]:.3g} s" in answer.out


def test_a_clock_alone_changes_no_result(hellora: Command, small: Path, tmp_path: Path) -> None:
    assert hellora("run", small, "--out", tmp_path / "timed", *with_settings(DEVICES)).status == 0
    answer = hellora("run", small, "--out", tmp_path / "bare")
    assert "simulated" not in answer.out
    assert adapter_bytes(tmp_path / "timed") == adapter_bytes(tmp_path / "bare")
    assert {policy for line in lines_of(tmp_path / "timed") for policy in line["policies"].values()} == {"plain"}
    assert {line["simulated_seconds"] for line in lines_of(tmp_path / "bare")} == {None}
    assert summary_of(tmp_path / "bare")["simulated_seconds"] is None


def test_stragglers_are_left_behind_on_record(stragglers: Path) -> None:
    reasons = []
    for line in lines_of(stragglers):
        assert len(line["cohort"]) == 5  # 3 × 1.5, rounded up
        assert len(line["updated"]) <= 3
        assert sorted([*line["updated"], *map(int, line["missing"])]) == line["cohort"]
        assert line["clients"].keys() == set(map(str, line["updated"]))
        away = sum(reason == "not available" for reason in line["missing"].values())
        assert line["downlink_bytes"] == DOWN * (5 - away)
        times = [values["simulated_seconds"] for values in line["clients"].values()]
        late = any(reason.startswith("deadline") for reason in line["missing"].values())
        assert line["simulated_seconds"] == (17.0 if late and len(times) < 3 else max(times)) <= 17.0
        reasons += [reason.partition(":")[0] for reason in line["missing"].values()]
    assert set(reasons) == {"not available", "deadline", "not among the first 3"}


def test_a_resumed_run_has_the_same_lines(hellora: Command, small: Path, stragglers: Path, tmp_path: Path) -> None:
    class Stopping:
        """A Progress that ends the run after two rounds."""

        def loading(self, *_: object) -> None: ...
        def noted(self, *_: object) -> None: ...
        def started(self, *_: object) -> None: ...
        def head_solved(self, *_: object) -> None: ...
        def round_started(self, *_: object) -> None: ...
        def client_answered(self, *_: object) -> None: ...
        def round_finished(self, line: Line) -> None:
            if line["round"] == 1:
                raise KeyboardInterrupt

    out = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        run_experiment(read_experiment(str(small), STRAGGLERS), out, Stopping())
    assert len(lines_of(out)) == 2
    assert hellora("run", small, "--out", out, "--resume", *with_settings(STRAGGLERS)).status == 0
    assert list(map(measured, lines_of(out))) == list(map(measured, lines_of(stragglers)))
    assert adapter_bytes(out) == adapter_bytes(stragglers)
    assert summary_of(out)["simulated_seconds"] == summary_of(stragglers)["simulated_seconds"] > 0


def test_a_table_of_devices(hellora: Command, small: Path, tmp_path: Path) -> None:
    """Client 2's device has no room for anything; client 5 is so slow that it always misses the deadline."""
    rows = [f"{i},{'1KB' if i == 2 else '1GiB'},{1e3 if i == 5 else 1e8:g},1MB,1" for i in range(6)]
    (tmp_path / "devices.csv").write_text("\n".join(["client,memory,speed,link,availability", *rows]))
    settings = {"fleet.table": str(tmp_path / "devices.csv"), "deadline": 60, "rounds": 4, "task.max_length": 32}
    assert hellora("run", small, "--out", tmp_path / "out", *with_settings(settings)).status == 0
    lines = lines_of(tmp_path / "out")
    assert any(5 in line["cohort"] for line in lines)
    for line in lines:
        assert 2 not in line["cohort"]
        assert [client for client in line["cohort"] if client == 5] == list(map(int, line["missing"]))
        assert all(reason.startswith("deadline: would take ") for reason in line["missing"].values())
    answer = hellora("plan", small, *with_settings(settings))
    assert (answer.status, answer.err) == (0, "")


@pytest.mark.parametrize("name", ["cross_device", "cross_silo"])
def test_a_named_distribution_runs(hellora: Command, small: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    assert hellora("run", small, "--out", out, *with_settings({"fleet.distribution": name, "rounds": 1})).status == 0
    assert lines_of(out)[0]["simulated_clock"] > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"deadline": 60}, "deadline goes by simulated time: give fleet.speed and fleet.link, a fleet.table"),
        ({"over_select": 1.3}, "over_select goes by simulated time"),
        ({"fleet.distribution": "phones"}, "there is no 'phones': choose among cross_device, cross_silo"),
        ({"fleet.table": "absent.csv"}, "fleet.table: cannot read absent.csv"),
    ],
)
def test_refusals(hellora: Command, small: Path, tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    answer = hellora("run", small, "--out", tmp_path / "out", *with_settings(settings))
    assert answer.status == 2
    assert words in answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
