"""What a step keeps for backward, and what keeping less costs: `python benchmarks/activations.py --check` (8 minutes).

A vision transformer of 12 layers with random weights trains all of them, or what a geometric pattern selects, under
each policy. Printed are the activations as a share of those that plain training of all layers keeps, the time of a step
(forward and backward) over that of plain training of all layers, and for int8 the cosine of the gradients.

Activations are the storages that operations of the forward pass made and that are alive when it ends, each counted
once, whoever holds them: autograd, a checkpoint, an int8 copy with its scales, a cast of a weight. The model's
parameters and buffers, the adapter, weights with merged components and the batch are there before, and are not counted.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import ViTConfig, ViTForImageClassification

from hellora.client.evaluation import autocast
from hellora.core.algebra import new_adapter
from hellora.core.exchange import Outputs, Policy
from hellora.core.types import Adapter
from hellora.methods.allocators.geometric import Pattern, pattern_layers
from hellora.model.load import adapter_spec
from hellora.model.policies import int8_activations
from hellora.model.resident import AdaptedModel, BaseModel
from hellora.model.settings import ModelSettings
from hellora.tasks import Batch
from hellora.tasks.image_classification import ImageClassification

LAYERS, RANK = 12, 8
KIND = ImageClassification()


class MadeAndAlive(TorchDispatchMode):
    """While entered, notes the storages that operations make; `num_bytes` are of those that are still alive."""

    def __init__(self, before: Sequence[Tensor]) -> None:
        super().__init__()
        self.before = {StorageWeakRef(tensor.untyped_storage()) for tensor in before}
        self.made: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                storage = StorageWeakRef(value.untyped_storage())
                if storage not in self.before:
                    self.made[storage] = value.untyped_storage().nbytes()
        return result

    @property
    def num_bytes(self) -> int:
        return sum(count for storage, count in self.made.items() if not storage.expired())


@dataclass
class Case:
    """A row of the table. `share` and `cosine` are of all layers without a policy; gates bound the one or the other."""

    name: str
    layers: tuple[int, ...]
    policy: Policy = Policy()
    gate: float | None = None  # the largest share
    least_cosine: float | None = None
    num_bytes: int = 0
    share: float = 0.0
    cosine: float | None = None  # where all layers are trained
    ratios: list[float] = field(default_factory=list)

    @property
    def met(self) -> bool:
        small = self.gate is None or self.share <= self.gate
        return small and (self.least_cosine is None or (self.cosine or 0.0) >= self.least_cosine)

    def __str__(self) -> str:
        cosine = "" if self.cosine is None else f"{self.cosine:.5f}"
        gate = "" if self.gate is None else f"<= {self.gate:.2f} {'ok' if self.met else 'MISSED'}"
        return (
            f"{self.name:<40}{self.num_bytes / 1e6:9.1f}{self.share:8.3f}{median(self.ratios):8.2f}{cosine:>10}  {gate}"
        )


def cases() -> list[Case]:
    """All layers under each policy, then every pattern at half and a quarter of them, plain and recomputed."""
    everything = tuple(range(LAYERS))
    rows = [
        Case("all 12", everything),
        Case("all 12, recompute all", everything, Policy(recompute="all"), 0.14),
        Case("all 12, int8", everything, Policy(int8_activations=True), 0.30, 0.999),
        Case("all 12, recompute all, int8", everything, Policy(recompute="all", int8_activations=True)),
        Case("all 12, bf16", everything, Policy(bf16=True)),
        Case("all 12, beside the weight", everything, Policy(merge=False)),
    ]
    for capacity, gate in ((6, 0.58), (3, 0.36)):
        for pattern in get_args(Pattern):
            layers = tuple(int(layer) for layer in pattern_layers(pattern, capacity, LAYERS))
            name = f"{pattern} {capacity}"
            rows.append(Case(name, layers))
            rows.append(Case(f"{name}, recompute frozen", layers, Policy(recompute="frozen"), gate))
    return rows


def vit(width: int) -> tuple[BaseModel, Adapter]:
    """A ViT for 224 × 224 images in patches of 16, and an adapter whose every pair acts."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": width, "num_attention_heads": width // 64, "intermediate_size": 4 * width}
    net = ViTForImageClassification(ViTConfig(num_hidden_layers=LAYERS, num_labels=10, **sizes))
    net.eval().requires_grad_(False)
    base = BaseModel(net, adapter_spec(net, ModelSettings(rank=RANK)), None, head_modules=("classifier",))
    adapter = new_adapter(base.spec, base.initial_head(), seed=0)
    acting = {name: replace(pair, B=0.02 * torch.randn(pair.B.shape)) for name, pair in adapter.pairs.items()}
    return base, replace(adapter, pairs=acting)


class Bench:
    """One model, one adapter, one batch; `step` is what `train_client` does of them before the optimizer."""

    def __init__(self, width: int, batch: int) -> None:
        self.base, self.adapter = vit(width)
        rng = torch.Generator().manual_seed(1)
        labels = torch.randint(10, (batch,), generator=rng)
        self.batch: Batch = {"pixel_values": torch.randn(batch, 3, 224, 224, generator=rng), "labels": labels}

    def adapted(self, case: Case) -> Any:
        row = np.zeros((LAYERS, RANK), dtype=bool)
        row[list(case.layers)] = True
        return self.base.adapted(self.adapter, row, train_head=True, policy=case.policy)

    def forward(self, case: Case) -> Outputs:
        rounding = torch.Generator().manual_seed(2)
        keeping = int8_activations(rounding) if case.policy.int8_activations else nullcontext()
        with keeping, autocast(self.base, "bf16" if case.policy.bf16 else "fp32"):
            return KIND.outputs(self.base, self.batch)

    def kept(self, case: Case) -> int:
        with self.adapted(case):
            tensors = [*self.base.net.parameters(), *self.base.net.buffers(), *self.batch.values()]
            with MadeAndAlive(tensors) as made:
                outputs = self.forward(case)
            kept = made.num_bytes
            del outputs
        return kept

    def gradient(self, case: Case) -> Tensor:
        with self.adapted(case) as adapted:
            self.backward(self.forward(case))
            return gradient_of(adapted)

    def seconds(self, case: Case) -> float:
        with self.adapted(case):
            start = time.perf_counter()
            self.backward(self.forward(case))
            return time.perf_counter() - start

    def backward(self, outputs: Outputs) -> None:
        torch.autograd.backward(outputs.loss_sums.sum())


def gradient_of(adapted: AdaptedModel) -> Tensor:
    """Every gradient in one vector, in float64."""
    return nn.utils.parameters_to_vector([p.grad for p in adapted.parameters]).double()  # type: ignore[misc]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a gate is not met")
    parser.add_argument("--width", type=int, default=384, help="of the model: 384 is ViT-S, 768 is ViT-B")
    parser.add_argument("--batch", type=int, default=4, help="images in a batch")
    parser.add_argument("--repeat", type=int, default=3, help="timed steps of each row; 0 = bytes and cosines only")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args(arguments)
    bench, rows = Bench(options.width, options.batch), cases()
    baseline = rows[0]
    exact = bench.gradient(baseline)
    for case in rows:
        case.num_bytes = bench.kept(case)
        case.share = case.num_bytes / rows[0].num_bytes
        if case.layers == baseline.layers:
            case.cosine = float(torch.cosine_similarity(bench.gradient(case), exact, dim=0))
    before = bench.seconds(baseline)
    seconds = []
    for _ in range(options.repeat):
        for case in rows:  # each between two steps of the baseline
            candidate, after = bench.seconds(case), bench.seconds(baseline)
            case.ratios.append(2 * candidate / (before + after))
            seconds.append(after)
            before = after
    print(f"{'':<40}{'MB':>9}{'share':>8}{'time':>8}{'cosine':>10}  gate")
    for case in rows:
        case.ratios = case.ratios or [float("nan")]
        print(case)
    print(
        f"ViT {options.width} wide, batch {options.batch}, {torch.get_num_threads()} threads; plain training of all",
        end="",
    )
    print(f" layers takes {median(seconds):.2f} s a step" if seconds else " layers was not timed")
    if options.out:
        record = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "width": options.width,
            "batch": options.batch,
            "repeat": options.repeat,
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("torch", "transformers")},
            "seconds": seconds,
            "rows": [{**asdict(case), "time": median(case.ratios), "met": case.met} for case in rows],
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return int(options.check and not all(case.met for case in rows))


if __name__ == "__main__":
    raise SystemExit(main())
