"""How much faster local epochs are with a prefix cache: `python benchmarks/prefix_cache.py --check` (5 minutes).

One client trains the last third of MiniLM's layers (inverted_triangle) on texts of `stdlib_docs`, for 3 and for 10
local epochs with the same batches, without the cache and with it, in memory and on disk. They take turns in one
process, and a ratio is the mean of the times without it just before and just after, over the time with it. A time is
all of `train_client`: tokenise, lend, train, give back. Whatever is compared returned the same adapter, bit for bit, or
the benchmark stops.

The forward pass of the lower two thirds is about half of a step: backward needs the upper third only, and no gradient
of weights. The cache can save that half in all epochs but the first: 1.5 for 3 epochs, 1.8 for 10, 2 for very many.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch

from hellora.client.train import train_client
from hellora.core.algebra import new_adapter
from hellora.core.exchange import ClientTask, ClientUpdate, Policy, TrainSettings
from hellora.data.settings import DataSettings
from hellora.data.sources import load_corpus
from hellora.methods.allocators.geometric import pattern_layers
from hellora.model.settings import ModelSettings
from hellora.tasks.sequence_classification import SequenceClassification

KIND, BATCH = SequenceClassification(), 16
CACHES = {"memory": Policy(prefix_cache="memory"), "disk": Policy(prefix_cache="disk")}


@dataclass
class Row:
    """Times without the cache over times with it; the median must be `least` at least."""

    epochs: int
    cache: str
    least: float | None = None
    ratios: list[float] = field(default_factory=list)

    @property
    def met(self) -> bool:
        return self.least is None or median(self.ratios) >= self.least

    def __str__(self) -> str:
        numbers = "".join(f"{f(self.ratios):8.3f}" for f in (min, median, max))
        gate = "" if self.least is None else f"  >= {self.least:.2f} {'ok' if self.met else 'MISSED'}"
        return f"{self.epochs:>6}  {self.cache:<8}{numbers}{gate}"


def same(a: ClientUpdate, b: ClientUpdate) -> bool:
    ours, theirs = a.adapter.tensors(), b.adapter.tensors()
    return ours.keys() == theirs.keys() and all(
        tensor.numpy().tobytes() == theirs[name].numpy().tobytes() for name, tensor in ours.items()
    )


def measure(row: Row, batches: int, repeat: int, clock: Callable[[], float]) -> float:
    """Fill the row's ratios; the median seconds without the cache."""
    corpus = load_corpus(DataSettings(max_examples=batches * BATCH), "text", 0)
    base = KIND.load(ModelSettings(), corpus.labels, 0)
    count = base.spec.num_layers
    trained = np.zeros((count, base.spec.max_rank), dtype=bool)
    trained[pattern_layers("inverted_triangle", count // 3, count)] = True
    train = TrainSettings(lr=2e-3, batch_size=BATCH, epochs=row.epochs, same_batches=True, precision="fp32")
    plain = ClientTask(0, 0, 0, new_adapter(base.spec, base.initial_head(), 0), trained, train)
    cached = replace(plain, policy=CACHES[row.cache])

    def timed(task: ClientTask) -> tuple[float, ClientUpdate]:
        start = clock()
        update = train_client(task, base, KIND, corpus.train)
        return clock() - start, update

    timed(plain)  # warm-up
    before, expected = timed(plain)
    seconds = [before]
    for _ in range(repeat):
        mine, update = timed(cached)
        after, _ = timed(plain)
        if not same(update, expected):
            raise SystemExit("the adapter is another one with the cache")
        row.ratios.append((before + after) / 2 / mine)
        seconds.append(after)
        before = after
    return median(seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a gate is not met")
    parser.add_argument("--quick", action="store_true", help="little data, one repetition, to see that it runs")
    parser.add_argument("--out", type=Path, help="where to write the numbers as JSON")
    parser.add_argument("--cpu", action="store_true", help="CPU time of one thread: for a machine that is not idle")
    options = parser.parse_args(arguments)
    threads = 1 if options.cpu else 2
    torch.set_num_threads(threads)
    clock = time.process_time if options.cpu else time.perf_counter
    batches, repeat = (2, 1) if options.quick else (16, 5)
    rows = [Row(3, "memory", 1.4), Row(3, "disk", 1.4), Row(10, "memory"), Row(10, "disk")]
    print(f"{'epochs':>6}  {'cache':<8}{'min':>8}{'median':>8}{'max':>8}")
    seconds = []
    for row in rows:
        seconds.append(measure(row, batches, repeat, clock))
        print(row, flush=True)
    if options.out is not None:
        found = {
            "date": datetime.now(UTC).date().isoformat(),
            "quick": options.quick,
            "cores": os.cpu_count(),
            "threads": threads,
            "clock": "CPU" if options.cpu else "wall",
            "machine": platform.machine(),
            "versions": {name: version(name) for name in ("torch", "transformers")},
            "batches": batches,
            "rows": [
                {**asdict(row), "median": median(row.ratios), "seconds_without": plain}
                for row, plain in zip(rows, seconds, strict=True)
            ],
        }
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if options.check and not all(row.met for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
