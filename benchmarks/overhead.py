"""A federated round of hellora against a bare transformers + peft loop: `python benchmarks/overhead.py --check`.

Prints ratios of time and of peak memory with their gates. The measuring is done by measure.py in processes of its own.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

MEASURE = Path(__file__).with_name("measure.py")
LIBRARIES = ("torch", "transformers", "peft", "datasets")


@dataclass(frozen=True)
class Row:
    """One ratio over its repetitions, and what its median must be: `limit` at most, or `limit` at least."""

    name: str
    ratios: list[float]
    limit: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool:
        middle = median(self.ratios)
        return self.limit is None or (middle >= self.limit if self.at_least else middle <= self.limit)

    @property
    def gate(self) -> str:
        return "-" if self.limit is None else f"{'>=' if self.at_least else '<='} {self.limit:.2f}"

    @property
    def verdict(self) -> str:
        return "-" if self.limit is None else "ok" if self.met else "under" if self.at_least else "over"

    def __str__(self) -> str:
        numbers = "".join(f"{f(self.ratios):8.3f}" for f in (min, median, max))
        return f"{self.name:<58}{numbers}{self.gate:>10}  {self.verdict}"


def measure(kind: str, **arguments: int | bool | str) -> dict[str, Any]:
    """What measure.py says of itself, in a fresh process."""
    print(f"measuring {kind} {arguments} ...", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, str(MEASURE), kind, json.dumps(arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    if done.returncode:
        raise SystemExit(f"measure.py {kind} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def peaks(kinds: list[tuple[str, dict[str, int]]], repeat: int) -> list[list[float]]:
    """The peak of each kind, `repeat` times, in MB. Memory does not mind company, so two processes run at once."""
    with ThreadPoolExecutor(2) as pool:
        asked = [[pool.submit(measure, kind, **arguments) for _ in range(repeat)] for kind, arguments in kinds]
        return [[future.result()["peak_mb"] for future in futures] for futures in asked]


def over(ours: list[float], theirs: list[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repetition of few steps, to see that it runs")
    parser.add_argument("--cpu", action="store_true", help="CPU time of one thread, on a busy machine; no workers row")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a gate is not met")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions of everything")
    parser.add_argument("--steps", type=int, default=4, help="steps of each of the 6 clients in a round")
    parser.add_argument("--images", type=Path, help="folder of the ViT and its data, for the row of small clients")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args()
    repeat, steps = options.repeat, options.steps
    if options.quick:
        repeat = steps = 1
        os.environ["OMP_WAIT_POLICY"] = "passive"  # threads that spin while they wait crawl on a busy machine

    if options.quick:
        print("QUICK: too few steps for the ratios to mean anything")
    print(f"{'ratio':<58}{'min':>8}{'median':>8}{'max':>8}{'gate':>10}")
    rows: list[Row] = []

    def show(row: Row) -> None:
        rows.append(row)
        print(row, flush=True)

    methods = measure("time_of_methods", repeat=repeat, steps=steps, cpu=options.cpu)
    times = methods["ratios"]
    show(Row("time, every layer / bare loop", times["everything"], 1.05))
    show(Row("time, inverted_triangle / bare loop", times["inverted_triangle"], 0.82))
    show(Row("time, bottleneck / bare loop", times["bottleneck"], 1.00))
    workers: dict[str, Any] = {"baseline_seconds": []}
    if not options.cpu:
        workers = measure("time_of_workers", repeat=repeat, steps=steps)
        pairs = workers["ratios"]["workers"]
        show(Row("time, 1 process x 2 threads / 2 workers x 1 thread", pairs, 1.02, at_least=True))
    if options.images:
        small = measure("time_of_small_clients", repeat=repeat, images=str(options.images), cpu=options.cpu)
        show(Row("time, many small clients (2 steps of 8 images) / bare", small["ratios"]["small"], 1.15))
    promises = measure("time_of_promises", repeat=repeat, steps=steps, cpu=options.cpu)["ratios"]
    show(Row("time, bytes promised, budget 4 steps above / none", promises["4"], 1.05))
    show(Row("time, bytes promised, budget 1 step above / none", promises["1"]))
    show(Row("time, bytes promised, least budget / none", promises["0"]))
    show(Row("time, a run after one that promised bytes / none", promises["after"], 1.02))
    bare, ours = peaks([("peak_of_bare", {"steps": steps}), ("peak_of_hellora", {"steps": steps})], repeat)
    show(Row("peak memory, every layer / bare loop", over(ours, bare)))
    ten, thousand = peaks([("peak_of_fleet", {"clients": count}) for count in (10, 1000)], repeat)
    show(Row("peak memory, 1,000 clients / 10 clients, cohort of 10", over(thousand, ten), 1.10))
    print(
        f"bare loop: {median(methods['baseline_seconds']) / methods['steps'] * 1000:.0f} ms a step; peak memory "
        f"{median(bare):.0f} MB, hellora {median(ours):.0f}, 10 clients {median(ten):.0f}, "
        f"1,000 clients {median(thousand):.0f}"
    )
    if options.out:
        record = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "quick": options.quick,
            "cpu": options.cpu,
            "repeat": repeat,
            "steps_per_client": steps,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
            "rows": [{**asdict(row), "median": median(row.ratios), "met": row.met} for row in rows],
            "bare_seconds": methods["baseline_seconds"],
            "two_workers_seconds": workers["baseline_seconds"],
            "peak_mb": {"bare": bare, "every_layer": ours, "10_clients": ten, "1000_clients": thousand},
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return int(options.check and not all(row.met for row in rows))


if __name__ == "__main__":
    sys.exit(main())
