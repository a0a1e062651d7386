"""Tokens per second of a language model's training, packed and padded: `python benchmarks/packing.py --check`.

One client trains every layer of a model of SmolLM2-135M's shape, with random weights, for one epoch on instructions of
Dolly of up to 512 tokens: padded in random order, padded in order of length within windows (what hellora does without
`task.packing`), and packed. A step has 4 rows of 512 tokens or, padded, as many examples as make as many tokens, so
that all three take about as many steps. They take turns in one process, and a ratio is the mean of the packed times
just before and just after, under the time of another. A time is all of `train_encoded`, packing too; tokens are those
of the examples, without padding. A first step on a few examples has to have the same loss packed and padded.

Gates, of the median: 1.5 times as fast as in random order, and as fast as in order of length.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hellora.client.train import train_encoded
from hellora.core.algebra import new_adapter
from hellora.core.exchange import ClientTask, TrainSettings
from hellora.data.settings import DataSettings
from hellora.data.sources import load_corpus
from hellora.model.location import resolve_name
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.tasks import Encoded
from hellora.tasks.causal_lm import CausalLM

SMOLLM2: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
TINY = {**SMOLLM2, "num_hidden_layers": 2, "hidden_size": 72, "intermediate_size": 192}
DOLLY = {"prompt": "{instruction}\n\n{context}\n\nAnswer: ", "response": "{response}"}
ROWS, RANK = 4, 8
GATES = {"random order": 1.5, "order of length": 1.0}
Timed = Callable[[], float]


def load(config: dict[str, Any], folder: Path, task: CausalLM) -> BaseModel:
    """The model with random weights, and MiniLM's tokenizer, whose tokens are about as long as SmolLM2's."""
    torch.manual_seed(0)
    if not folder.exists():
        LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(resolve_name("minilm")).save_pretrained(folder)
    return task.load(ModelSettings(name=str(folder), rank=RANK), (), 0)


def client_task(base: BaseModel, batch_size: int) -> ClientTask:
    trained = np.ones((base.spec.num_layers, base.spec.max_rank), dtype=bool)
    train = TrainSettings(batch_size=batch_size, epochs=1, lr=1e-4)
    return ClientTask(0, 0, 0, new_adapter(base.spec, {}, 0), trained, train)


def padding(kind: CausalLM, base: BaseModel, encoded: Encoded, size: int) -> float:
    """The share of padding in a batch of rows in this order, on average."""
    rows = list(encoded.examples)
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    held = sum(kind.collate(base, batch)["input_ids"].numel() for batch in batches)
    return 1 - sum(len(row["input_ids"]) for batch in batches for row in batch) / held


def ways(kind: CausalLM, base: BaseModel, encoded: Encoded, clock: Timed) -> dict[str, Timed]:
    """The three ways to train, each for an epoch; they return the seconds that it took."""
    assert encoded.lengths is not None
    alike = max(1, round(ROWS * kind.max_length / float(encoded.lengths.mean())))
    plain = replace(kind, packing=False)

    def timed(way: CausalLM, data: Encoded, size: int) -> Timed:
        def run() -> float:
            start = clock()
            train_encoded(client_task(base, size), base, way, data)
            return clock() - start

        return run

    return {
        "packed": timed(kind, encoded, ROWS),
        "random order": timed(plain, replace(encoded, lengths=None), alike),
        "order of length": timed(plain, encoded, alike),
    }


def same_loss(kind: CausalLM, base: BaseModel, encoded: Encoded) -> bool:
    """Whether a few examples have the same mean loss packed and padded."""
    few = encoded.select(np.arange(min(8, len(encoded))))
    losses = []
    for way in (kind, replace(kind, packing=False)):
        task = client_task(base, len(few))
        losses.append(train_encoded(replace(task, train=replace(task.train, steps=1)), base, way, few).metrics["loss"])
    return abs(losses[0] - losses[1]) < 1e-4


def measure(found: dict[str, Timed], repeat: int) -> dict[str, list[float]]:
    """Seconds of every way, which take turns."""
    for timed in found.values():
        timed()  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(repeat):
        for name, timed in found.items():
            seconds[name].append(timed())
    seconds["packed"].append(found["packed"]())
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a gate is not met")
    parser.add_argument("--data", default="../shared/data/dolly15k", help="Dolly's folder")
    parser.add_argument("--examples", type=int, default=96)
    parser.add_argument("--layers", type=int, help="fewer of the model's 30: a busy machine's share of them")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, one repetition, to see that it runs")
    parser.add_argument("--out", type=Path, help="where to write the numbers as JSON")
    parser.add_argument("--cpu", action="store_true", help="CPU time of one thread: for a machine that is not idle")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1 if given.cpu else 2)
    clock = time.process_time if given.cpu else time.perf_counter
    config = TINY if given.tiny else {**SMOLLM2, "num_hidden_layers": given.layers or SMOLLM2["num_hidden_layers"]}
    repeat, count = (1, 24) if given.tiny else (given.repeat, given.examples)
    kind = CausalLM(max_length=512, packing=True)
    with tempfile.TemporaryDirectory() as parent:
        base = load(config, Path(parent) / "model", kind)
    corpus = load_corpus(DataSettings(name=given.data, max_examples=count, **DOLLY), "instruction", 0)
    encoded = kind.encode(base, corpus.train)
    tokens = int(encoded.lengths.sum()) if encoded.lengths is not None else 0
    rows = kind.training_rows(base, encoded, 0)
    print(f"{len(encoded)} examples of {tokens / len(encoded):.0f} tokens in {len(rows)} rows, ", end="")
    print(f"of which {padding(kind, base, rows, ROWS):.1%} is padding", flush=True)
    if not same_loss(kind, base, encoded):
        raise SystemExit("packed and padded have other losses")
    seconds = measure(ways(kind, base, encoded, clock), repeat)
    ratios = {
        name: [mine / ((seconds["packed"][i] + seconds["packed"][i + 1]) / 2) for i, mine in enumerate(seconds[name])]
        for name in GATES
    }
    print(f"{'':<16}{'tokens/s':>9}{'min':>8}{'median':>8}{'max':>8}")
    for name, all_seconds in seconds.items():
        numbers = "".join(f"{f(ratios[name]):8.3f}" for f in (min, median, max)) if name in ratios else ""
        gate = f"  >= {GATES[name]:.2f} {'ok' if median(ratios[name]) >= GATES[name] else 'MISSED'}" if numbers else ""
        print(f"{name:<16}{tokens / median(all_seconds):9.0f}{numbers}{gate}")
    if given.out is not None:
        document = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "clock": "CPU" if given.cpu else "wall"},
            "versions": {name: version(name) for name in ("torch", "transformers")},
            "model": config,
            "examples": len(encoded),
            "tokens": tokens,
            "rows": len(rows),
            "seconds": seconds,
            "ratios": ratios,
        }
        given.out.write_text(json.dumps(document, indent=1) + "\n")
    met = all(median(ratios[name]) >= least for name, least in GATES.items())
    return int(given.check and not met)


if __name__ == "__main__":
    raise SystemExit(main())
