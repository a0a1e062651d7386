"""A whole federation on this machine: a server and three clients, each a process of its own with data of its own.

    python examples/federation.py [FOLDER]

The docstrings of Python's standard library become three private files, and a test file of the server's. The clients
have unequal memory, so the planner gives them different layers. Everything but the run's FOLDER (default:
runs/federation) is temporary, and no process is left, also after Ctrl-C.
"""

import csv
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path

import tomli_w

from hellora.data.stdlib_docs import load
from hellora.deployment.flower_tools import free_port
from hellora.deployment.supervision import Child, ending_on_signals, kept_alive
from hellora.runs.terminal import default_folder

HELLORA = [sys.executable, "-m", "hellora"]
CLIENTS = {"hospital": "400MiB", "clinic": "220MiB", "phone": "160MiB"}  # memory that training may take
READY_SECONDS = 90.0
EXPERIMENT = {
    "base": "quickstart",
    "rounds": 3,
    "cohort": 3,
    "data": {"label": "label", "clients": len(CLIENTS), "partitioner": "iid"},
    "method": {"allocator": "geometric", "pattern": "inverted_triangle"},
    "policy": {"may": []},  # a client with less memory trains fewer layers, rather than in smaller pieces
    "train": {"lr": 1.2e-2, "batch_size": 16, "steps": 20},
    "compute": {"threads": 1, "device": "cpu"},
}


def write_data(folder: Path) -> None:
    """A CSV file per client: by topic, so that each knows some topics well and others hardly; and the server's."""
    corpus = load()
    names = corpus["train"].features["label"].names
    files = {name: [] for name in (*CLIENTS, "server")}
    for number, row in enumerate(corpus["train"]):
        own = row["label"] % len(CLIENTS) if number % 3 else number // 3 % len(CLIENTS)
        files[list(CLIENTS)[own]].append(row)
    files["server"] = list(corpus["test"])
    for name, rows in files.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([row["text"], names[row["label"]]] for row in rows)


def shown(*arguments: object) -> list[str]:
    """The arguments of a hellora command, after it has been printed."""
    print("$", shlex.join(["hellora", *map(str, arguments)]), flush=True)
    return list(map(str, arguments))


def started(name: str, log: Path, *arguments: object) -> Child:
    """A hellora command that runs until we end."""
    command = [*HELLORA, *shown(*arguments)]
    child = Child(name, lambda: command, os.environ, log=log, grace=20)
    child.start()
    return child


def wait_until(child: Child, *words: str) -> None:
    """Until a process has said all the words."""
    until = time.monotonic() + READY_SECONDS
    while not all(word in child.output() for word in words):
        if not child.running or time.monotonic() > until:
            sys.exit(f"{child.name} is not ready:\n{child.output()}")
        time.sleep(0.2)


def federate(out: Path) -> int:
    """All of it, in the working directory; returns the status of the run."""
    write_data(Path())
    experiment, certificates = Path("docs.toml"), Path("certificates")
    table = {**EXPERIMENT, "data": {**EXPERIMENT["data"], "name": str(Path("server.csv").resolve())}}
    experiment.write_text(tomli_w.dumps(table))
    names = [part for name in CLIENTS for part in ("--client", name)]
    subprocess.run([*HELLORA, *shown("certificates", certificates, *names)], check=True)
    port, ca = free_port(), certificates / "ca.crt"
    address = f"127.0.0.1:{port}"
    children: list[Child] = []
    with kept_alive(children):
        server = ["server", "state", "--port", port, "--certificates", certificates, "--runs", out.parent]
        children.append(started("server", Path("server.log"), *server))
        wait_until(children[0], *(f"admitted {name}" for name in CLIENTS))
        for name, memory in CLIENTS.items():
            who = ["--name", name, "--key", certificates / "clients" / name, "--certificate", ca]
            what = ["--data", f"{name}.csv", "--memory", memory, "--device", "cpu"]
            children.append(started(name, Path(f"{name}.log"), "client", "--server", address, *who, *what))
        for child in children[1:]:
            wait_until(child, "connected")
        where = ["--federation", "state", "--out", out.name]
        status = subprocess.run([*HELLORA, *shown("run", experiment, *where)]).returncode
        if status:
            for child in children:
                print(f"--- {child.name}\n{child.output()}")
        return status


def tell(out: Path) -> None:
    """What each client trained in the last round."""
    last = json.loads((out / "rounds.jsonl").read_text().splitlines()[-1])
    for client, name in enumerate(sorted(CLIENTS)):  # ids are given in the order of names
        ranks = last["ranks"].get(str(client), [])
        row = " ".join(f"{rank:>2}" if rank else " ·" for rank in ranks)
        print(f"{name:>9}, {CLIENTS[name]}: trained {sum(map(bool, ranks))} of {len(ranks)} layers, ranks {row}")
    print(f"adapter: {out / 'adapter'}; nothing else is left")


def main() -> int:
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1"}
    out = (Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder("federation", resume=False)).resolve()
    with tempfile.TemporaryDirectory(prefix="hellora-federation-") as scratch, ending_on_signals(), chdir(scratch):
        os.environ["TMPDIR"] = scratch  # of the commands, so that it goes with the rest
        try:
            status = federate(out)
        except KeyboardInterrupt:
            print("stopped; nothing is left running")
            return 130
    if status == 0:
        tell(out)
    return status


if __name__ == "__main__":
    sys.exit(main())
