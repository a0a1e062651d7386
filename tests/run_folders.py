"""Folders of runs as runs write them, with numbers that a test chooses."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

Fields = Mapping[str, Any]
TABLE = {
    "seed": 0,
    "rounds": 3,
    "cohort": 2,
    "model": {"name": "tiny", "rank": 4},
    "data": {"name": "sentences", "clients": 3},
    "method": {"allocator": "fed_hello", "dispatcher": "whole", "aggregator": "participant_mean"},
    "compute": {"threads": 1},
}


def metrics(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "macro_f1": accuracy / 2, "loss": 1 - accuracy}


def line(round: int, accuracy: float | None = 0.5, **more: Any) -> dict[str, Any]:
    """A line of rounds.jsonl: clients 0 and 2 of a model of two layers; 100 bytes up, 200 down."""
    return {
        "round": round,
        "cohort": [0, 2],
        "updated": [0, 2],
        "missing": {},
        "rejected": {},
        "dropped": {},
        "ranks": {"0": [0, 4], "2": [2, 0]},
        "repeated": [],
        "metrics": None if accuracy is None else metrics(accuracy),
        "clients": {"0": {"examples": 10, "loss": 1.0}, "2": {"examples": 30, "loss": 2.0}},
        "energy": [0.5, 0.5, 0.0, 0.0],
        "layer_scores": None,
        "uplink_bytes": 100,
        "downlink_bytes": 200,
        "seconds": 1.0,
        "simulated_seconds": 10.0,
        "simulated_clock": 10.0 * (round + 1),
        **more,
    }


def summary_of(lines: Sequence[Fields], **more: Any) -> dict[str, Any]:
    return {
        "initial": metrics(0.1),
        "final": lines[-1]["metrics"],
        "groups": [
            {"layers": 1, "rank": 4, "clients": 2, "metrics": metrics(0.4)},
            {"layers": 2, "rank": 4, "clients": 1, "metrics": metrics(0.6)},
        ],
        "clients": {"0": 0.5, "1": 0.25, "2": 0.75},
        "worst_client": 0.25,
        "uplink_bytes": sum(each["uplink_bytes"] for each in lines),
        "data": {"evaluated_on": "the test split"},
        **more,
    }


def write_run(
    folder: Path,
    lines: Sequence[Fields] = (),
    clients: Sequence[Fields] | None = None,
    summary: Fields | None = None,
    **table: Any,
) -> Path:
    """A run's folder; one that has not ended has no summary, an old one no clients."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.toml").write_text(tomli_w.dumps({**TABLE, **table}))
    (folder / "rounds.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    if clients is not None:
        (folder / "clients.json").write_text(json.dumps({"clients": clients}))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def ended_run(folder: Path, accuracies: Sequence[float] = (0.3, 0.5), **table: Any) -> Path:
    """A run that has ended, with these accuracies after its rounds."""
    lines = [line(round, accuracy) for round, accuracy in enumerate(accuracies)]
    return write_run(folder, lines, summary=summary_of(lines), **table)
