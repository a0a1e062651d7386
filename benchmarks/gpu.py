"""hellora on a GPU against bare loops of transformers and peft: `python benchmarks/gpu.py --out FILE`, made to take
less than 5 minutes on one H100. `--tiny --device cpu` shows on any machine that it runs; its ratios mean nothing.

A Llama with random weights (1.2 billion, bfloat16) trains on random words: steps with every layer and with the last
quarter of them, an evaluation, answers to prompts, the mean of the clients' adapters. Each side is a process of its
own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import tiny_models
from bare_gpu import best
from datasets import Dataset

from hellora.client.encoding import encode_rows
from hellora.client.evaluation import evaluate
from hellora.client.train import train_encoded
from hellora.core.algebra import new_adapter
from hellora.core.exchange import ClientTask, ClientUpdate
from hellora.core.state import ServerState
from hellora.experiments.config import check
from hellora.experiments.planning import federation, fleet, make_planner
from hellora.model.answers import answers

BARE = Path(__file__).with_name("bare_gpu.py")
RANK, SEED, REPEAT = 16, 0, 3
LARGE = {"hidden_size": 2048, "num_hidden_layers": 20, "num_attention_heads": 32, "num_key_value_heads": 8}
LARGE |= {"intermediate_size": 8192, "max_position_embeddings": 2048}
# What a ratio should be at most, by reasoning about what each side launches. Nobody has measured one of them yet.
EXPECTED = {
    "step, every layer": 1.05,
    "step, few layers": 1.05,  # autograd begins at the shallowest adapter on both sides
    "evaluation": 1.0,  # the adapter is merged; peft's acts beside the weights
    "generation": 1.0,  # likewise
    "aggregation": 1.5,  # on the CPU: sums by component, of unequal adapters, beside a plain mean
    "peak bytes, every": 1.02,
    "peak bytes, few": 1.02,
    "peak bytes of a step / promised": 1.0,
}

Json = dict[str, Any]


def sizes(tiny: bool) -> dict[str, int]:
    """Examples, their tokens, examples in a batch, tokens of an answer, clients whose adapters are averaged."""
    if tiny:
        return {"examples": 4, "tokens": 12, "batch": 2, "new_tokens": 3, "clients": 3}
    return {"examples": 64, "tokens": 512, "batch": 8, "new_tokens": 64, "clients": 16}


def table(model: Path, device: str, dtype: str, size: dict[str, int]) -> Json:
    return {
        "seed": SEED,
        "cohort": size["clients"],
        "task": {"name": "causal_lm", "max_length": size["tokens"]},
        "model": {"name": str(model), "rank": RANK, "dtype": dtype},
        "data": {"clients": size["clients"], "partitioner": "iid"},
        "fleet": {"layers": [], "memory": ["1TiB"]},
        "policy": {"may": []},
        "method": {"allocator": "everything"},
        "train": {"lr": 1e-4, "batch_size": size["batch"], "steps": size["examples"] // size["batch"]},
        "compute": {"device": device, "eval_batch_size": size["batch"]},
    }


def texts(size: dict[str, int]) -> Dataset:
    """Random words, all of one number of tokens: half of them a prompt, half its response."""
    rng, half = np.random.default_rng(SEED), size["tokens"] // 2

    def words(count: int) -> list[str]:
        return [" ".join(rng.choice(tiny_models.WORDS, half - 2)) for _ in range(count)]

    return Dataset.from_dict({"prompt": words(size["examples"]), "response": words(size["examples"])})


class Hellora:
    """hellora's side, in this process, from a file of settings."""

    def __init__(self, given: Json) -> None:
        self.given, self.device, self.size = given, given["device"], given["size"]
        self.experiment = check("gpu", given["table"])
        self.kind, self.rows = self.experiment.task, texts(self.size)
        self.base = self.kind.load(self.experiment.model, (), SEED).to(self.device)
        self.encoded = encode_rows(self.kind, self.base, self.rows)
        self.adapter = new_adapter(self.base.spec, self.base.initial_head(), SEED)

    def task(self, layers: Sequence[int], client: int = 0) -> ClientTask:
        row = np.zeros((self.base.spec.num_layers, RANK), dtype=bool)
        row[list(layers)] = True
        return ClientTask(0, client, SEED, self.adapter, row, self.experiment.train, spare_bytes=0)

    def trained(self, layers: Sequence[int]) -> ClientUpdate:
        return train_encoded(self.task(layers), self.base, self.kind, self.encoded)

    def aggregation(self, update: ClientUpdate) -> float:
        """Seconds of the mean of as many updates as there are clients."""
        count = self.size["clients"]
        run = federation(self.experiment, self.base, fleet(self.experiment, [self.size["examples"]] * count), None)
        state, every = ServerState(0, self.adapter), self.given["every"]
        all_of_them = [(self.task(every, client), replace(update, client=client)) for client in range(count)]
        context = run.context(state).of("aggregator", state)
        return best(lambda: run.method.aggregator.aggregate(context, all_of_them), "cpu", REPEAT)

    def promised(self) -> float | None:
        """The peak of a step that the planner promises, in bytes."""
        planner = make_planner(self.experiment, (), lambda _: self.size["tokens"], True)
        assert planner is not None
        profile = fleet(self.experiment, [self.size["examples"]] * self.size["clients"])[0]
        estimate = planner.estimate(profile, np.full(self.base.spec.num_layers, RANK))
        return None if estimate is None else float(planner.needed_memory_bytes(estimate.cost))

    def measure(self) -> Json:
        found: Json = {}
        for name in ("every", "few"):
            layers = self.given[name]
            kept: list[ClientUpdate] = []
            key = f"step, {name} layer{'s' * (name == 'few')}"
            found[key] = best(lambda layers=layers, kept=kept: kept.append(self.trained(layers)), self.device, REPEAT)
            if self.device.startswith("cuda"):
                found[f"peak bytes, {name}"] = torch.cuda.max_memory_allocated()
            if name == "every":
                peaks = [update.metrics["peak_bytes"] for update in kept if "peak_bytes" in update.metrics]
                found["peak of a step"] = max(peaks, default=None)
                found["aggregation"] = self.aggregation(kept[0])
        batch = self.size["batch"]
        found["evaluation"] = best(
            lambda: evaluate(self.adapter, self.base, self.kind, self.rows, batch, encoded=self.encoded),
            self.device,
            REPEAT,
        )
        prompts, at_once = self.given["prompts"], len(self.given["prompts"])
        with self.base.adapted(self.adapter):
            found["generation"] = best(
                lambda: answers(self.base, prompts, self.size["new_tokens"], at_once), self.device, REPEAT
            )
        return found | {"promised": self.promised()}


def given_to_bare(side: Hellora) -> Json:
    """What the bare loop is given: the same ids, layers and modules."""
    ids = [side.encoded.examples[row]["input_ids"] for row in range(len(side.encoded))]
    return {
        "model": side.given["table"]["model"]["name"],
        "dtype": side.given["table"]["model"]["dtype"],
        "device": side.device,
        "repeat": REPEAT,
        "rank": RANK,
        "targets": sorted({module.name.rpartition(".")[2] for module in side.base.spec.modules}),
        "every": side.given["every"],
        "few": side.given["few"],
        "ids": [row[: min(map(len, ids))] for row in ids],
        "batch": side.size["batch"],
        "prompts": side.given["prompts"],
        "new_tokens": side.size["new_tokens"],
        "clients": side.size["clients"],
    }


def child(*command: str, line: Json) -> Json:
    done = subprocess.run([sys.executable, *command], input=json.dumps(line) + "\n", capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    found: Json = json.loads(done.stdout.splitlines()[-1])
    return found


def ratios(ours: Json, bare: Json) -> dict[str, float]:
    found = {name: ours[name] / bare[name] for name in EXPECTED if name in ours and name in bare}
    if ours["peak of a step"] and ours["promised"]:
        found["peak bytes of a step / promised"] = ours["peak of a step"] / ours["promised"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: --tiny --device cpu shows whether it runs")
    size, dtype = sizes(options.tiny), "float32" if options.tiny else "bfloat16"
    with tempfile.TemporaryDirectory() as place:
        model = tiny_models.save_llama(Path(place) / "llama", **({} if options.tiny else LARGE))
        layers = 3 if options.tiny else LARGE["num_hidden_layers"]
        rng = np.random.default_rng(SEED)
        given = {
            "device": options.device,
            "size": size,
            "table": table(model, options.device, dtype, size),
            "every": list(range(layers)),
            "few": list(range(layers - max(1, layers // 4), layers)),
            "prompts": rng.integers(5, 5 + len(tiny_models.WORDS), (size["batch"], size["tokens"] // 2)).tolist(),
        }
        both = child(__file__, "--child", line=given)
        ours, bare = both["ours"], child(str(BARE), line=both["bare"])
    found = ratios(ours, bare)
    print(f"{'ratio, hellora / bare':<36}{'here':>8}{'expected':>10} (at most; reasoned, never measured)")
    for name, value in found.items():
        print(f"{name:<36}{value:>8.3f}{EXPECTED[name]:>10.2f}")
    if options.out:
        cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        record = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "device": options.device, "cards": cards}
        record |= {"tiny": options.tiny, "torch": torch.__version__, "ratios": found, "hellora": ours, "bare": bare}
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:
        side = Hellora(json.loads(sys.stdin.readline()))
        print(json.dumps({"bare": given_to_bare(side), "ours": side.measure()}))
    else:
        sys.exit(main())
