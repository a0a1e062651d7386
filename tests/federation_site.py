"""A whole federation on this machine: a server, clients with files of their own, and runs, all as processes."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import tomli_w
import torch
from factories import bits
from safetensors.torch import load_file
from tiny_models import save_bert, save_sentences

from hellora.core.exchange import ClientFailure, ClientUpdate
from hellora.core.types import ClientProfile
from hellora.deployment.flower_tools import free_port
from hellora.experiments.config import check
from hellora.experiments.experiment import Experiment
from hellora.experiments.prepare import on_this_machine, prepare
from hellora.experiments.setup import Setup
from hellora.runs.run import run_experiment
from hellora.server.backend import Backend, Order

COMMAND = (sys.executable, "-m", "hellora")
CLIENTS = {"clinic": (2, 2), "hospital": (4, 4), "phone": (1, 4), "ward": (3, 4)}  # layers and rank, in order of ids
METHODS: dict[str, dict[str, Any]] = {
    "fed_hello": {"allocator": "fed_hello", "warmup": 1},
    "helora_pad": {"allocator": "everything", "dispatcher": "truncate", "aggregator": "context_pad"},
    "solved_head": {"allocator": "everything", "start": "balanced_ridge", "head": "closed_form", "head_rounds": 1},
    "product_update": {"allocator": "everything", "dispatcher": "truncate", "aggregator": "product_update"},
}
PATIENCE = 600.0  # seconds; a machine may have other work, such as two more federations


def hellora(*arguments: object, folder: Path, log: Path) -> "subprocess.Popen[bytes]":
    """Start a command; its output goes to the end of `log`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as out:
        return subprocess.Popen(
            [*COMMAND, *map(str, arguments)], cwd=folder, stdout=out, stderr=subprocess.STDOUT, env=environment
        )


def until(is_so: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Wait until something is so; what it is."""
    end = time.monotonic() + patience
    while not (found := is_so()):
        assert time.monotonic() < end, f"waited {patience:g} s for: {what}"
        time.sleep(0.05)
    return found


def below(process: "subprocess.Popen[bytes]", program: str) -> list[psutil.Process]:
    """The processes below one that run this program or module, without those that only guard them."""
    found = []
    for each in psutil.Process(process.pid).children(recursive=True):
        try:
            words = each.cmdline()
        except psutil.Error:
            continue
        if words[1:3] == ["-m", program] or (len(words) > 1 and words[1].endswith(f"/{program}")):
            found.append(each)
    return found


class Site:
    """Starts and ends the processes of a federation in a folder, in which there are data: whole/, of all clients, for
    runs in this process, server/ and a file NAME.csv of each client."""

    kind = "csv"

    def __init__(self, folder: Path, model: Path, clients: Mapping[str, tuple[int, int]] = CLIENTS) -> None:
        self.folder, self.model, self.clients, self.port = folder, model, clients, free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.allow: Sequence[str] = ()  # words of every command that makes use of an experiment

    @property
    def address(self) -> tuple[object, ...]:
        return (f"127.0.0.1:{self.port}", "--certificate", "keys/ca.crt")

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, name: str, *arguments: object) -> None:
        self.processes[name] = hellora(*arguments, folder=self.folder, log=self.folder / f"{name}.log")

    def start_server(self) -> None:
        seen = self.log("server").count("listening on")
        self.start("server", "server", "state", "--port", self.port, "--certificates", "keys", "--runs", "runs")
        until(lambda: self.log("server").count("listening on") > seen, "the server to listen")

    def start_client(self, name: str, *more: object) -> None:
        layers, rank = self.clients[name]
        self.start(
            name, "client", "--server", *self.address, "--name", name, "--key", f"keys/clients/{name}",
            "--data", f"{name}.{self.kind}", "--memory", "none", "--layers", layers, "--rank", rank, "--device", "cpu",
            *self.allow, *more,
        )  # fmt: skip

    def begin(self) -> None:
        hosts = ("--host", "localhost", "--host", "127.0.0.1")
        names = [word for name in self.clients for word in ("--client", name)]
        assert (
            hellora("certificates", "keys", *hosts, *names, folder=self.folder, log=self.folder / "keys.log").wait()
            == 0
        )
        self.start_server()
        for name in self.clients:
            self.start_client(name)

    def end(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            process.wait(30)

    def submit(self, out: str, *more: object, **changes: Any) -> "Run":
        path = self.write(out, self.experiment(self.folder / "server", **changes))
        return Run(self, out, hellora(
            "run", path, "--federation", "state", "--out", out, *self.allow, *more,
            folder=self.folder, log=self.folder / f"{out}.log",
        ))  # fmt: skip

    def write(self, name: str, experiment: Experiment) -> Path:
        path = self.folder / f"{name}.toml"
        path.write_text(tomli_w.dumps(experiment.table))
        return path

    def experiment(self, at: Path, **changes: Any) -> Experiment:
        table = {
            "rounds": 2,
            "cohort": len(self.clients),
            "model": {"name": str(self.model), "rank": 4},
            "data": {"name": str(at), "clients": len(self.clients), "partitioner": "column", "column": "owner"},
            "train": {"lr": 0.03, "batch_size": 8, "epochs": 6},
            "compute": {"threads": 1, "device": "cpu"},
            "method": METHODS["fed_hello"],
        }
        return check("fault", {**table, **changes}, simulated=False)

    def replay(self, out: str, without: Sequence[tuple[int, int]], **changes: Any) -> dict[str, torch.Tensor]:
        """The tensors of the same run in this process, without the updates of these (round, client)."""
        changes.pop("deadline", None)  # who was late is among those left out
        fleet = by_client(self.experiment(self.folder / "whole", **changes), self.clients)
        run_experiment(
            self.experiment(self.folder / "whole", **changes, fleet=fleet),
            self.folder / f"{out}-replay",
            Silent(),
            preparing=lambda experiment, _: without_answers(experiment, frozenset(without)),
        )
        return tensors(self.folder / f"{out}-replay")


def by_client(experiment: Experiment, clients: Mapping[str, tuple[int, int]] = CLIENTS) -> dict[str, Any]:
    """The [fleet] table that gives each client, by id, what it has at the site."""
    order = [0] * len(clients)
    members = check(
        "members", {**experiment.table, "fleet": {"layers": list(range(len(clients)))}}, simulated=False
    ).fleet.members(len(clients), experiment.run.seed)
    for client, group in enumerate(members):
        order[group] = client
    budgets = list(clients.values())
    return {"layers": [budgets[i][0] for i in order], "ranks": [budgets[i][1] for i in order]}


def without_answers(experiment: Experiment, dropped: frozenset[tuple[int, int]]) -> Setup:
    return replace(prepare(experiment), connect=lambda setup: Dropping(on_this_machine(setup), dropped))


class Dropping(Backend):
    """A backend that loses some answers."""

    def __init__(self, backend: Any, dropped: frozenset[tuple[int, int]]) -> None:
        self.backend, self.dropped = backend, dropped

    def clients(self) -> Sequence[ClientProfile]:
        return self.backend.clients()

    def train(self, orders: Sequence[Order]) -> Iterator[ClientUpdate | ClientFailure]:
        kept = [order for order in orders if (order.make().round, order.client) not in self.dropped]
        yield from self.backend.train(kept)

    def __enter__(self) -> "Dropping":
        return self

    def __exit__(self, *_: object) -> None: ...


class Run:
    """A submitted run."""

    def __init__(self, site: Site, out: str, process: "subprocess.Popen[bytes]") -> None:
        self.site, self.out, self.process = site, out, process

    @property
    def folder(self) -> Path:
        return self.site.folder / "runs" / self.out

    def lines(self) -> list[dict[str, Any]]:
        path = self.folder / "rounds.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait(self) -> int:
        return self.process.wait(PATIENCE * 2)

    @property
    def log(self) -> str:
        return self.site.log(self.out)

    def patience(self) -> float:
        """A deadline, in seconds, that every client keeps on this machine as busy as it is: the first round of this
        run thrice, for in it the clients load their model."""
        return max(15.0, round(3 * self.lines()[0]["seconds"]))

    def lost(self) -> list[tuple[int, int]]:
        """(round, client) of every answer that the record says is not there."""
        return [
            (line["round"], int(client))
            for line in self.lines()
            for kind in ("missing", "rejected")
            for client in line[kind]
        ]


class Silent:
    """Progress that nobody watches."""

    def loading(self, *_: Any) -> None: ...
    def noted(self, *_: Any) -> None: ...
    def started(self, *_: Any) -> None: ...
    def head_solved(self, *_: Any) -> None: ...
    def round_started(self, *_: Any) -> None: ...
    def client_answered(self, *_: Any) -> None: ...
    def round_finished(self, *_: Any) -> None: ...


def training(site: Site, name: str, round: int) -> None:
    """Wait until a client trains in a round of the run that was submitted last."""
    seen = site.log(name).count(f"round {round}: training")
    until(lambda: site.log(name).count(f"round {round}: training") > seen, f"{name} to train in round {round}")


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Everything in a run's last checkpoint."""
    return load_file(max((run / "checkpoint").glob("*.safetensors")))


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """A client that reported nothing of a layer reported nan, which equals nothing but its own bits."""
    return bits(one) == bits(other)


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def site_in(folder: Path) -> Site:
    """A site with a tiny model and data, of which nothing runs yet."""
    data = save_sentences(folder / "sentences", train=240)
    for at in ("whole", "server"):
        (folder / at).mkdir(parents=True)
        (folder / at / "test.csv").write_bytes((data / "test.csv").read_bytes())
    with (data / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    owned = [{**row, "owner": list(CLIENTS)[i % len(CLIENTS)]} for i, row in enumerate(rows)]
    write(folder / "whole" / "train.csv", owned)
    for name in CLIENTS:
        write(folder / f"{name}.csv", [row for row in owned if row["owner"] == name])
    return Site(folder, save_bert(folder / "bert"))


@contextmanager
def running(site: Site) -> Iterator[Site]:
    try:
        site.begin()
        yield site
    finally:
        site.end()
