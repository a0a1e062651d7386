"""`kill -9` at any moment, then `--resume`: the same adapter, bit for bit, and the same lines as a run left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

HARNESS = Path(__file__).with_name("kill_harness.py")
KILLS = 20

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
}


def write_experiment(path: Path, model: Path, data: Path, **changes: dict[str, Any]) -> Path:
    table: dict[str, Any] = {
        "rounds": 3,
        "cohort": 3,
        "model": {"name": str(model), "rank": 2},
        "data": {"name": str(data), "clients": 6, "alpha": 1.0, "min_examples": 4},
        "fleet": {"layers": [1, 2, 4]},
        "method": {"warmup": 1, "refresh": 1},
        "train": {"lr": 0.03, "batch_size": 16},
        "compute": {"threads": 1},
    }
    for section, settings in changes.items():
        table[section] = {**table.get(section, {}), **settings}
    path.write_text(tomli_w.dumps(table))
    return path


@pytest.mark.slow
def test_kills_leave_no_trace(tmp_path: Path, tiny_bert: Path, sentences: Path) -> None:
    """Both experiments together have all that a state can hold: scores, velocity, reports, personal heads."""
    experiments = [
        write_experiment(tmp_path / "proxy.toml", tiny_bert, sentences, server={"lr": 0.7, "momentum": 0.9}),
        write_experiment(
            tmp_path / "personal.toml", tiny_bert, sentences, method={"scores": "clients", "head": "local"}
        ),
    ]
    seed = int(os.environ.get("HELLORA_KILL_SEED", random.SystemRandom().randrange(10**6)))
    print(f"to repeat: HELLORA_KILL_SEED={seed}")
    command = [sys.executable, *map(str, [HARNESS, tmp_path, seed, KILLS, *experiments])]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=ENVIRONMENT, check=False)
    assert ended.returncode == 0, f"HELLORA_KILL_SEED={seed}\n{ended.stdout}{ended.stderr}"
    report = json.loads(ended.stdout)
    print(report)
    assert sum(kill.startswith("after") for kill in report["kills"]) >= 20
    assert any(kill.startswith("before") for kill in report["kills"])
    assert report["kills_one_by_one"] >= 25


# ------------------------------------------------------------------------------------------------------- with processes


def children_of(pid: int) -> set[int]:
    """The ids of all processes below a process."""
    parent_of = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # ended meanwhile
            parent_of[int(entry.name)] = int(fields[1])
    found: set[int] = set()
    while more := {child for child, parent in parent_of.items() if parent in found | {pid}} - found:
        found |= more
    return found


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.slow
def test_workers_end_with_a_killed_parent_and_the_run_can_be_resumed(
    hellora: Callable[..., Any], tmp_path: Path, tiny_bert: Path, sentences: Path
) -> None:
    experiment = write_experiment(tmp_path / "long.toml", tiny_bert, sentences)
    settings = ["--set", "rounds=30", "--set", "eval_every=30"]
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    command = [sys.executable, "-m", "hellora", "run", str(experiment), "--out", str(killed), *settings]
    run = subprocess.Popen(
        [*command, "--set", "compute.workers=2"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    lines = killed / "rounds.jsonl"
    try:
        assert until(lambda: run.poll() is not None or (lines.exists() and lines.read_text().count("\n") >= 3), 120)
        workers = children_of(run.pid)
    finally:
        run.send_signal(signal.SIGKILL)
        _, errors = run.communicate()
    assert run.returncode == -signal.SIGKILL, errors.decode()
    assert len(workers) >= 2
    assert until(lambda: not any(alive(pid) for pid in workers), 30)
    assert not (killed / "summary.json").exists()

    assert hellora("run", experiment, "--out", killed, "--resume", *settings).status == 0
    assert hellora("run", experiment, "--out", alone, *settings).status == 0
    for name in ("adapter/adapter_model.safetensors", "adapter/head.safetensors"):
        assert (killed / name).read_bytes() == (alone / name).read_bytes()
    losses = [
        [[client["loss"] for client in json.loads(line)["clients"].values()] for line in text.splitlines()]
        for text in ((killed / "rounds.jsonl").read_text(), (alone / "rounds.jsonl").read_text())
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 30
