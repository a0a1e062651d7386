"""What is read of a run's folder while it is written, when it has ended, and when it is old or damaged."""

import json
from pathlib import Path

import pytest
from run_folders import ended_run, line, metrics, summary_of, write_run

from hellora.core.errors import InputError
from hellora.reporting.record import read_run, stamp


def test_a_line_that_is_not_whole_yet_does_not_count(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [line(0)])
    with (folder / "rounds.jsonl").open("a") as file:
        file.write(json.dumps(line(1))[:50])
    run = read_run(folder)
    assert [each["round"] for each in run.lines] == [0]
    assert run.summary is None


def test_before_the_end_the_first_metrics_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert read_run(folder).initial == {}
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "state-000000.json").write_text(json.dumps({"record": {"initial": metrics(0.2)}}))
    assert read_run(folder).initial == metrics(0.2)
    assert read_run(ended_run(folder)).initial == metrics(0.1)


def test_clients_are_called_by_their_names_and_else_by_their_ids(tmp_path: Path) -> None:
    clients = [{"id": 0, "name": "clinic", "examples": 5, "budget": {}}, {"id": 1, "examples": 5, "budget": {}}]
    run = read_run(write_run(tmp_path / "run", [line(0)], clients))
    assert run.names == {0: "clinic", 1: "client 1", 2: "client 2"}


def test_what_clients_reported_is_listed_by_client(tmp_path: Path) -> None:
    lines = [
        line(0, clients={"2": {"peak_bytes": 5}}),
        line(1, clients={"0": {"peak_bytes": 7}, "2": {"peak_bytes": 6}}),
    ]
    assert read_run(write_run(tmp_path / "run", lines)).of_clients("peak_bytes") == {0: [7], 2: [5, 6]}


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder of a run"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rounds.jsonl", "{\n"),
        ("rounds.jsonl", "[1]\n"),
        ("rounds.jsonl", '{"round": 0}\n'),
        ("rounds.jsonl", json.dumps(line(0, cohort=3)) + "\n"),
        ("rounds.jsonl", json.dumps(line(0, clients={"0": 1})) + "\n"),
        ("rounds.jsonl", json.dumps(line(0, per_class={"a": 1})) + "\n"),
        ("rounds.jsonl", json.dumps(line(0, sample={"examples": 1, "of": 2, "intervals": {"a": [1]}})) + "\n"),
        ("clients.json", '{"clients": [{"id": 0, "budget": {"layers": "x"}}]}'),
        ("clients.json", '{"clients": [{"id": 0, "budget": {"rank": [1, "x"]}}]}'),
        ("rounds.jsonl", json.dumps(line(0, ranks={"7": [1, 2]})) + "\n"),
        ("rounds.jsonl", json.dumps(line(0, ranks={"0": [1, 2], "2": [1]})) + "\n"),
        ("rounds.jsonl", json.dumps(line(0, ranks={"0": ["x"]})) + "\n"),
        ("rounds.jsonl", json.dumps(line(0, metrics={"accuracy": "x"})) + "\n"),
        ("rounds.jsonl", json.dumps(line(0, clients={"0": {"loss": "x"}})) + "\n"),
        ("rounds.jsonl", json.dumps(line(0, energy=["x"])) + "\n"),
        ("rounds.jsonl", json.dumps(line(0, rejected=["x"])) + "\n"),
        ("rounds.jsonl", json.dumps(line(0, simulated_clock="x")) + "\n"),
        ("summary.json", json.dumps(summary_of([line(0)], groups=[{"layers": 1}]))),
        ("summary.json", json.dumps(summary_of([line(0)], clients={"0": "x"}))),
        ("summary.json", json.dumps(summary_of([line(0)], data={}))),
        ("summary.json", "{"),
        ("summary.json", "[]"),
        ("summary.json", "{}"),
        ("clients.json", "[]"),
        ("clients.json", '{"clients": [{}]}'),
        ("experiment.toml", "["),
        ("experiment.toml", 'rounds = "x"'),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, text: str) -> None:
    folder = ended_run(tmp_path / "run")
    (folder / name).write_text(text)
    with pytest.raises(InputError, match=f"{name} is damaged"):
        read_run(folder)


@pytest.mark.parametrize("name", ["round", "cohort", "ranks", "metrics", "clients", "uplink_bytes", "seconds"])
def test_what_a_line_lacks_is_said(tmp_path: Path, name: str) -> None:
    lines = [line(0), {key: value for key, value in line(1).items() if key != name}]
    folder = write_run(tmp_path / "run", lines)
    with pytest.raises(InputError, match=f"rounds.jsonl is damaged: line 2: {name} is missing"):
        read_run(folder)


def test_a_setting_of_another_kind_is_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds="x")
    with pytest.raises(InputError, match=r"experiment.toml is damaged: rounds is 'x'$"):
        read_run(folder)


def test_the_stamp_changes_with_every_file(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [line(0)])
    before = stamp(folder)
    assert stamp(folder) == before
    with (folder / "rounds.jsonl").open("a") as file:
        file.write(json.dumps(line(1)) + "\n")
    after = stamp(folder)
    assert after != before
    (folder / "summary.json").write_text("{}")
    later = stamp(folder)
    assert later != after
    (folder / "error.log").write_text("ValueError: no\n")
    assert stamp(folder) != later
