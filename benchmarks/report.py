"""Size and opening time of the report of a long run with many clients: `python benchmarks/report.py --check`.

The run is synthetic: 500 rounds in which each of 100 clients trains some of 32 layers, is predicted, measured, missing
or rejected. A report is open once every plot of it is drawn, in a headless Chromium of its own.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import tomli_w
from playwright.sync_api import sync_playwright

from hellora.reporting.overview import page_of
from hellora.reporting.page import content_of, html

ROUNDS, CLIENTS, LAYERS, RANK, CLASSES = 500, 100, 32, 16, 20
LARGEST_BYTES, LONGEST_SECONDS, OPENINGS = 10e6, 3.0, 5
SWITCHES = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
DRAWN = """() => {
    const plots = [...document.querySelectorAll(".plot")];
    return plots.length > 8 && plots.every((plot) => plot.querySelector(".plot-container"));
}"""


def write_run(folder: Path, rounds: int = ROUNDS, clients: int = CLIENTS, layers: int = LAYERS) -> Path:
    """The folder of a run that never was, as a run writes it."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    table = {
        "seed": 0,
        "rounds": rounds,
        "cohort": clients,
        "model": {"name": "synthetic", "rank": RANK},
        "data": {"name": "synthetic", "clients": clients},
        "method": {"allocator": "fed_hello", "dispatcher": "whole", "aggregator": "participant_mean"},
    }
    (folder / "experiment.toml").write_text(tomli_w.dumps(table))
    records = [
        {
            "id": client,
            "examples": 100,
            "budget": {"layers": 1 + client % layers, "memory_bytes": 10**8 * (1 + client % 3)},
            "labels": {
                f"class {c}": int(n) for c, n in enumerate(rng.multinomial(100, rng.dirichlet([0.3] * CLASSES)))
            },
        }
        for client in range(clients)
    ]
    (folder / "clients.json").write_text(json.dumps({"clients": records}))
    lines = [line_of(round, clients, layers, rng) for round in range(rounds)]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    accuracy = {str(client): float(rng.uniform(0.4, 0.9)) for client in range(clients)}
    summary = {
        "initial": metrics(0.0),
        "final": lines[-1]["metrics"],
        "groups": [{"layers": n, "rank": RANK, "clients": 33, "metrics": metrics(n / 64)} for n in (8, 16, 32)],
        "clients": accuracy,
        "worst_client": min(accuracy.values()),
        "per_class": {
            name: {"precision": 0.7, "recall": 0.8, "f1": 0.75, "examples": 100} for name in ("moon", "sea", "sun")
        },
        "confusion": {"labels": ["moon", "sea", "sun"], "counts": [[80, 10, 10], [10, 80, 10], [10, 10, 80]]},
        "uplink_bytes": sum(line["uplink_bytes"] for line in lines),
        "data": {"evaluated_on": "the test split"},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def metrics(progress: float) -> dict[str, float]:
    return {"accuracy": 0.1 + 0.7 * progress, "macro_f1": 0.1 + 0.6 * progress, "loss": 3.0 - 2 * progress}


def line_of(round: int, clients: int, layers: int, rng: np.random.Generator) -> dict[str, Any]:
    """One line of rounds.jsonl, in which a tenth of the clients fail."""
    ranks = rng.integers(1, RANK + 1, (clients, layers)) * (rng.random((clients, layers)) < 0.4)
    failed = {
        str(c): f"deadline: would take {rng.uniform(30, 90):.3g} s of 30 s" for c in range(round % 10, clients, 10)
    }
    counted = [client for client in range(clients) if str(client) not in failed]
    return {
        "round": round,
        "cohort": list(range(clients)),
        "updated": counted,
        "missing": failed if round % 2 else {},
        "rejected": {} if round % 2 else failed,
        "dropped": {},
        "ranks": {str(client): row.tolist() for client, row in enumerate(ranks)},
        "repeated": [],
        "metrics": metrics(round / ROUNDS),
        "clients": {
            str(client): {
                "examples": 100,
                "loss": float(rng.uniform(1, 2)),
                "delta_norm": float(rng.uniform(0, 1)),
                "delta_cosine": float(rng.uniform(-1, 1)),
                "predicted_peak_bytes": int(rng.uniform(5e7, 9e7)),
                "peak_bytes": int(rng.uniform(5e7, 9e7)),
            }
            for client in counted
        },
        "energy": rng.dirichlet(np.linspace(8, 1, RANK)).round(6).tolist(),
        "layer_scores": rng.random(layers).tolist() if round % 50 == 0 else None,
        "uplink_bytes": int(rng.uniform(1e7, 2e7)),
        "downlink_bytes": int(rng.uniform(2e7, 3e7)),
        "seconds": 60.0,
        "simulated_seconds": 30.0,
        "simulated_clock": 30.0 * (round + 1),
    }


def opening_seconds(file: Path, chromium: str, width: int = 1280) -> float:
    """From the request to the last plot drawn, in a fresh browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(SWITCHES))
        page = browser.new_page(viewport={"width": width, "height": 900})
        started = perf_counter()
        page.goto(file.as_uri(), wait_until="load")
        page.wait_for_function(DRAWN)
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        seconds = perf_counter() - started
        browser.close()
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 if a gate is missed")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser [default: chromium]")
    arguments = parser.parse_args()
    if arguments.chromium is None:
        parser.error("there is no chromium: name one with --chromium")
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_run(Path(scratch) / "run")
        started = perf_counter()
        text = html(content_of(page_of([folder])))
        written = perf_counter() - started
        file = folder / "report.html"
        file.write_text(text)
        size = len(text.encode())
        seconds = [opening_seconds(file, arguments.chromium) for _ in range(OPENINGS)]
    print(f"{ROUNDS} rounds, {CLIENTS} clients, {LAYERS} layers; written in {written:.1f} s")
    print(f"size     {size / 1e6:5.2f} MB                             gate < {LARGEST_BYTES / 1e6:g} MB")
    print(
        f"opening  {median(seconds):5.2f} s  ({min(seconds):.2f} to {max(seconds):.2f}, {OPENINGS} times)"
        f"    gate < {LONGEST_SECONDS:g} s"
    )
    met = size < LARGEST_BYTES and median(seconds) < LONGEST_SECONDS
    return 0 if met or not arguments.check else 1


if __name__ == "__main__":
    sys.exit(main())
