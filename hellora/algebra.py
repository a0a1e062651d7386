"""Floor 1: mathematics on LoRA pairs and adapters. Pure: inputs are never changed, sums run in float64."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hellora.seeds import seed_for
from hellora.types import Adapter, AdapterSpec, LoraPair, Mask, ModuleSpec


def new_adapter(spec: AdapterSpec, head: Mapping[str, Tensor], seed: int) -> Adapter:
    """The adapter before round 0: B = 0 and A drawn, as PEFT starts it; the same on every machine."""
    return Adapter({module.name: new_pair(module, spec, seed) for module in spec.modules}, dict(head))


def new_pair(module: ModuleSpec, spec: AdapterSpec, seed: int) -> LoraPair:
    """A module's pair before training: B = 0 and A uniform in ±1/√d_in.

    A depends on the seed and the module's name only, not on which other modules are adapted.
    """
    generator = torch.Generator().manual_seed(seed_for(seed, "lora_A", module.name))
    bound = module.d_in**-0.5
    A = torch.empty(spec.max_rank, module.d_in).uniform_(-bound, bound, generator=generator)
    return LoraPair(A, torch.zeros(module.d_out, spec.max_rank), spec.scale)


def delta_weight(pair: LoraPair) -> Tensor:
    """ΔW = scale · B @ A as a dense (d_out, d_in) matrix."""
    return pair.scale * (pair.B @ pair.A)


def components(pair: LoraPair, index: Tensor) -> LoraPair:
    """The rank components of `pair` that `index` names: integers, or a boolean of shape (rank,)."""
    return LoraPair(pair.A[index], pair.B[:, index], pair.scale)


def trained_components(pair: LoraPair, row: Mask) -> Tensor:
    """Which components of a dispatched pair are trained, (rank,) bool; `row` (max_rank,) is of the bank.

    A dispatched pair has all components of the bank, or only the trained ones.
    """
    if pair.rank == len(row):
        return torch.tensor(row)
    if pair.rank != row.sum():
        raise ValueError(f"a pair of rank {pair.rank} was dispatched to train {row.sum()} of {len(row)} components")
    return torch.ones(pair.rank, dtype=torch.bool)


def trained_part(adapter: Adapter, trained: Mask, spec: AdapterSpec) -> Adapter:
    """The components that `trained` (layers, max_rank) switches on; modules of frozen layers are absent. No head."""
    pairs = {}
    for module in spec.modules:
        if trained[module.layer].any():
            pair = adapter.pairs[module.name]
            pairs[module.name] = components(pair, trained_components(pair, trained[module.layer]))
    return Adapter(pairs)


def mean_head(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of the adapters' heads, by parameter name."""
    return {name: weighted_mean([a.head[name] for a in adapters], weights) for name in adapters[0].head}


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ w·x / Σ w, summed in float64 in the order given, returned in the dtype of the first tensor."""
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        total += weight * tensor.to(torch.float64)
    return (total / sum(weights)).to(tensors[0].dtype)


def in_float64(adapter: Adapter) -> Adapter:
    """The adapter with its pairs in float64, so that their mean is not rounded yet."""
    pairs = {name: LoraPair(pair.A.double(), pair.B.double(), pair.scale) for name, pair in adapter.pairs.items()}
    return replace(adapter, pairs=pairs)
