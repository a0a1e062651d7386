"""The server's part of a round with a large cohort: `python benchmarks/cohort.py --check` (5 minutes).

A thousand clients of MiniLM's shape take 2 steps of 4 short texts each, in this process. Measured is a whole round of
`federate()`, and of it what passes inside the clients' work; all the rest is the server's. Gates: 5 % of the round,
with its diagnostics, which take at most 2 %.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import hellora.server.rounds as rounds
from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate
from hellora.experiments.config import check
from hellora.experiments.prepare import prepare
from hellora.experiments.setup import Setup
from hellora.server.rounds import federate

CLIENTS, STEPS, BATCH, ROUNDS = 1000, 2, 4, 3
GATES = {"server": 0.05, "diagnostics": 0.02}


class Timed:
    """Adds up the seconds of a function's calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return self.function(*arguments)
        finally:
            self.seconds += time.perf_counter() - started


def prepared(clients: int) -> Setup:
    table = {
        "rounds": ROUNDS + 1,  # the first one warms up
        "cohort": clients,
        "eval_every": ROUNDS + 1,
        "model": {"name": "minilm", "rank": 8},
        "data": {"name": "stdlib_docs", "clients": clients, "partitioner": "iid"},
        "method": {"allocator": "everything"},
        "train": {"batch_size": BATCH, "steps": STEPS},
        "compute": {"device": "cpu", "workers": 1, "threads": 2},
    }
    return prepare(check("cohort", table))


def shares(clients: int) -> dict[str, list[float]]:
    """The server's share of each round, and that of its diagnostics."""
    setup = prepared(clients)
    rounds.diagnose = diagnosed = Timed(rounds.diagnose)
    found: dict[str, list[float]] = {"server": [], "diagnostics": [], "seconds": []}
    with setup.backend() as backend:
        attempt: Callable[[ClientTask], ClientUpdate | ClientFailure] = backend.answer  # type: ignore[attr-defined]
        training = Timed(attempt)
        backend.answer = training  # type: ignore[attr-defined]
        started = time.perf_counter()
        for report in federate(setup.initial_state(), setup.federation, backend, setup):
            seconds = time.perf_counter() - started
            if len(report.counted.updated) != clients:
                raise RuntimeError(f"{len(report.counted.updated)} of {clients} clients counted")
            if report.round:
                found["seconds"].append(round(seconds, 2))
                found["server"].append(round(1 - training.seconds / seconds, 4))
                found["diagnostics"].append(round(diagnosed.seconds / seconds, 4))
            training.seconds = diagnosed.seconds = 0.0
            started = time.perf_counter()
            if report.round == ROUNDS:
                break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail unless the gates are met")
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = shares(arguments.clients)
    missed = False
    for name, values in found.items():
        gate, middle = GATES.get(name), median(values)
        missed |= gate is not None and middle > gate
        verdict = "" if gate is None else f"   <= {gate:.0%}  {'over' if middle > gate else 'ok'}"
        print(f"{name:<12}{min(values):10.4f}{middle:10.4f}{max(values):10.4f}{verdict}")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"clients": arguments.clients, **found}, indent=1) + "\n")
    raise SystemExit(arguments.check and missed)


if __name__ == "__main__":
    main()
