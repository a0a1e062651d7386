"""One module of 4096 × 4096, 50 clients of ranks 4 to 64: `python benchmarks/product.py --check` (2 minutes).

Compares product_svd and product_update, which work on stacked factors, with what they stand for: the dense sum of the
clients' products and its SVD, both by torch, in the same process and on the same threads. Printed are the seconds of
both, their ratio, the relative difference of the products of the two sets of pairs, and the largest tensor that any
operation of the aggregator returned, in shares of one dense matrix. The dense side runs once per
aggregator; it is slow.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hellora.core.algebra import delta_weight
from hellora.core.exchange import ClientTask, ClientUpdate, TrainSettings
from hellora.core.types import Adapter, AdapterSpec, LoraPair, ModuleSpec
from hellora.methods.aggregators.product_svd import ProductSvd
from hellora.methods.aggregators.product_update import ProductUpdate
from hellora.methods.context import RoundContext
from hellora.methods.dispatchers.truncate import Truncate
from hellora.methods.strategies import Aggregator, Answers

CLIENTS, RANKS = 50, (4, 8, 16, 32, 64)
FASTER, DIFFERENCE = 4.0, 1e-4  # the gates


class LargestTensor(TorchDispatchMode):
    """While entered, notes the largest number of elements that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def round_of(adapter: Adapter, spec: AdapterSpec) -> RoundContext:
    """A round as dispatcher and aggregator see it."""
    return RoundContext(round=0, rounds=1, seed=0, spec=spec, fleet=(), adapter=adapter)


def federation(side: int) -> tuple[AdapterSpec, Adapter, Answers]:
    """A global_pair with a decaying spectrum, and clients that moved what they were sent by a tenth."""
    spec = AdapterSpec((ModuleSpec("m", 0, side, side),), ("layer",), max(RANKS), scale=2.0)
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng) * side**-0.5

    decay = torch.linspace(1.0, 0.5, spec.max_rank)
    global_pair = Adapter(
        {"m": LoraPair(decay[:, None] * normal(spec.max_rank, side), normal(side, spec.max_rank), 2.0)}
    )
    answers = []
    for client in range(CLIENTS):
        row = np.arange(spec.max_rank)[None, :] < RANKS[client % len(RANKS)]
        sent = Truncate().dispatch(round_of(global_pair, spec), global_pair, row)
        pair = sent.pairs["m"]
        back = LoraPair(pair.A + 0.1 * normal(*pair.A.shape), pair.B + 0.1 * normal(*pair.B.shape), pair.scale)
        task = ClientTask(0, client, client, sent, row, TrainSettings(), cut=True)
        answers.append((task, ClientUpdate(0, client, 10 + client, Adapter({"m": back}))))
    return spec, global_pair, answers


def dense(global_pair: Adapter, answers: Answers, rank: int, changes: bool) -> Tensor:
    """The best approximation of the dense sum in this rank, (d_out, d_in); `changes`: in update form."""
    total = sum(update.weight for _, update in answers)
    matrix = delta_weight(global_pair.pairs["m"]) if changes else torch.zeros_like(delta_weight(global_pair.pairs["m"]))
    for task, update in answers:
        share = update.weight / total
        matrix += share * delta_weight(update.adapter.pairs["m"])
        if changes:
            matrix -= share * delta_weight(task.adapter.pairs["m"])
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, :rank] * S[:rank] @ Vh[:rank]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a gate is not met")
    parser.add_argument("--side", type=int, default=4096, help="rows and columns of the module")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions of the factored side; the fastest counts")
    options = parser.parse_args(arguments)
    spec, global_pair, answers = federation(options.side)
    context = round_of(global_pair, spec)
    stacked = spec.max_rank + sum(update.adapter.pairs["m"].rank for _, update in answers)
    print(
        f"{options.side} × {options.side}, {CLIENTS} clients, stacked rank {stacked}, {torch.get_num_threads()} threads"
    )
    print(f"{'':<16}{'seconds':>9}{'dense':>9}{'ratio':>8}{'difference':>12}{'largest tensor':>16}")
    met = True
    methods: tuple[tuple[str, Aggregator, bool], ...] = (
        ("product_svd", ProductSvd(), False),
        ("product_update", ProductUpdate(), True),
    )
    for name, aggregator, changes in methods:
        with LargestTensor() as largest:  # and a warm-up
            aggregator.aggregate(context, answers)
        runs = [timed(lambda a=aggregator: a.aggregate(context, answers)[0]) for _ in range(options.repeat)]  # type: ignore[misc]
        seconds, result = min(runs, key=lambda run: run[0])
        slow, expected = timed(lambda c=changes: dense(global_pair, answers, spec.max_rank, c))  # type: ignore[misc]
        difference = float((delta_weight(result.pairs["m"]) - expected).norm() / expected.norm())
        share = largest.elements / options.side**2
        print(f"{name:<16}{seconds:9.2f}{slow:9.2f}{slow / seconds:8.1f}{difference:12.1e}{share:16.2f}", flush=True)
        met &= slow / seconds >= FASTER and difference <= DIFFERENCE and share < 1
    print(f"gates: ratio >= {FASTER:g}, difference <= {DIFFERENCE:g}, largest tensor < 1: {'met' if met else 'MISSED'}")
    return 1 if options.check and not met else 0


if __name__ == "__main__":
    raise SystemExit(main())
