"""What a round costs more in a deployment than in one process: `python benchmarks/deployment.py` (3 minutes, idle).

A server and three clients on this machine, over TLS with keys, train MiniLM for ROUNDS rounds of a few steps; then the
same experiment runs in one process. Printed: seconds of a round either way, without the first and the last, which also
evaluates, and where the difference lies. A SuperNode asks for messages every 3 seconds, and each takes a process.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import tomli_w

from hellora.data.stdlib_docs import load
from hellora.deployment.flower_tools import free_port
from hellora.deployment.supervision import Child, kept_alive

ROUNDS, CLIENTS, STEPS = 8, ("clinic", "hospital", "phone"), 4
HELLORA = [sys.executable, "-m", "hellora"]
APPS = ("hellora.deployment.flower_app:server", "timed_app:client")
STARTING = "import flwr.supernode.runtime.run_clientapp, hellora.deployment.flower_app"


def write(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_data() -> None:
    """whole/ has all that local clients train on; server/ the test alone; and each client its file."""
    corpus = load()
    names = corpus["train"].features["label"].names
    rows = [
        {"text": row["text"], "label": names[row["label"]], "owner": CLIENTS[i % len(CLIENTS)]}
        for i, row in enumerate(corpus["train"])
    ]
    test = [{"text": row["text"], "label": names[row["label"]]} for row in list(corpus["test"])[:200]]
    write(Path("whole/train.csv"), rows)
    for folder in ("whole", "server"):
        write(Path(folder) / "test.csv", test)
    for name in CLIENTS:
        write(Path(f"{name}.csv"), [row for row in rows if row["owner"] == name])


def experiment(data: str) -> Path:
    table = {
        "base": "quickstart",
        "rounds": ROUNDS,
        "cohort": len(CLIENTS),
        "eval_every": ROUNDS,
        "data": {
            "name": str(Path(data).resolve()),
            "label": "label",
            "clients": len(CLIENTS),
            "partitioner": "column",
            "column": "owner",
        },
        "fleet": {"layers": [], "shares": []},
        "method": {"allocator": "everything"},
        "train": {"batch_size": 16, "steps": STEPS},
        "compute": {"threads": 1, "device": "cpu"},
    }
    path = Path(f"{data}.toml")
    path.write_text(tomli_w.dumps(table))
    return path


def until(child: Child, *words: str) -> None:
    end = time.monotonic() + 90
    while not all(word in child.output() for word in words):
        if time.monotonic() > end or not child.running:
            sys.exit(child.output())
        time.sleep(0.2)


def deployed() -> list[dict[str, Any]]:
    """The lines of the run's rounds at a server; the times of messages are in times.jsonl."""
    from hellora.deployment.federated_run import Submission, run_at
    from hellora.deployment.flower_tools import Address
    from hellora.experiments.config import read_experiment

    port, keys, children = free_port(), Path("keys"), list[Child]()
    names = [part for name in CLIENTS for part in ("--client", name)]
    subprocess.run([*HELLORA, "certificates", str(keys), *names], check=True, stdout=subprocess.DEVNULL)
    environment = {
        **os.environ,
        "TIMES": str(Path("times.jsonl").resolve()),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }

    def start(name: str, *arguments: object) -> None:
        command = [*HELLORA, *map(str, arguments)]
        children.append(Child(name, lambda: command, environment, log=Path(f"{name}.log"), grace=20))
        children[-1].start()

    with kept_alive(children):
        start("server", "server", "state", "--port", port, "--certificates", keys, "--runs", "runs")
        until(children[0], *(f"admitted {name}" for name in CLIENTS))
        for name in CLIENTS:
            start(
                name, "client", "--server", f"127.0.0.1:{port}", "--name", name, "--key", keys / "clients" / name,
                "--certificate", keys / "ca.crt", "--data", f"{name}.csv", "--memory", "none", "--device", "cpu",
            )  # fmt: skip
        for child in children[1:]:
            until(child, "connected")
        os.environ["PYTHONPATH"] = environment["PYTHONPATH"]
        table = read_experiment(str(experiment("server")), simulated=False).table
        submission = Submission("benchmark", table, "deployed", False, False, APPS)
        run_at(Address("127.0.0.1", port, (keys / "ca.crt").resolve()), submission, print)
    return lines_of(Path("runs/deployed"))


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


def process_seconds() -> float:
    """How long a client's process takes to start, best of 3."""
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", STARTING], check=True)
        times.append(time.perf_counter() - begun)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the numbers here, as JSON")
    out = parser.parse_args().out
    out = out and out.resolve()
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    with tempfile.TemporaryDirectory() as scratch, chdir(scratch):
        write_data()
        away = deployed()
        subprocess.run([*HELLORA, "run", str(experiment("whole")), "--out", "local"], check=True)
        here = lines_of(Path("local"))
        times = [json.loads(line) for line in Path("times.jsonl").read_text().splitlines()]
        training = [client["seconds"] for line in away[1:] for client in line["clients"].values()]
        times = times[len(CLIENTS) :]  # without the first round
        numbers = {
            "round, deployed": statistics.median(line["seconds"] for line in away[1:-1]),
            "round, one process": statistics.median(line["seconds"] for line in here[1:-1]),
            "a client's training": statistics.median(training),
            "until a message reaches the client's process": statistics.median(t["begun"] - t["made"] for t in times),
            "of that, to start the process": process_seconds(),
            "in the client's process": statistics.median(t["ended"] - t["begun"] for t in times),
        }
    for name, seconds in numbers.items():
        print(f"{name:<48}{seconds:7.2f} s")
    if out:
        out.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
