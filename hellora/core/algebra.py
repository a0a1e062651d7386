"""Compute with LoRA pairs and adapters. All of it is pure: inputs are never changed, and sums run in float64."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hellora.core.seeds import seed_for
from hellora.core.types import Adapter, AdapterSpec, LoraPair, Mask, ModuleSpec


def new_adapter(spec: AdapterSpec, head: Mapping[str, Tensor], seed: int) -> Adapter:
    """Make the adapter before round 0: B = 0 and A drawn, as PEFT starts it; it is the same on every machine."""
    return Adapter({module.name: new_pair(module, spec, seed) for module in spec.modules}, dict(head))


def starting_adapter(spec: AdapterSpec, head: Mapping[str, Tensor], seed: int) -> Adapter:
    """Make the adapter before round 0 of a run with this seed; server and clients make the same."""
    return new_adapter(spec, head, seed_for(seed, "adapter"))


def new_pair(module: ModuleSpec, spec: AdapterSpec, seed: int) -> LoraPair:
    """Make a module's pair before training: B = 0 and A uniform in ±1/√d_in.

    A depends on the seed and the module's name only, not on which other modules are adapted.
    """
    generator = torch.Generator().manual_seed(seed_for(seed, "lora_A", module.name))
    bound = module.d_in**-0.5
    A = torch.empty(spec.max_rank, module.d_in).uniform_(-bound, bound, generator=generator)
    return LoraPair(A, torch.zeros(module.d_out, spec.max_rank), spec.scale)


def delta_weight(pair: LoraPair) -> Tensor:
    """Return ΔW = scale · B @ A as a dense (d_out, d_in) matrix."""
    return pair.scale * (pair.B @ pair.A)


def components(pair: LoraPair, index: Tensor) -> LoraPair:
    """Return the rank components of `pair` that `index` names: integers, or a boolean of shape (rank,).

    All of them are the pair itself: to copy what nobody writes to takes a server longer than most else that it does.
    """
    if index.dtype == torch.bool and index.all():
        return pair
    where = index.nonzero().squeeze(1) if index.dtype == torch.bool else index
    return LoraPair(pair.A[where], pair.B[:, where], pair.scale)


def joined(pair: LoraPair, other: LoraPair) -> LoraPair:
    """Return one pair that does what both do, of the rank of both together and the scale of the first."""
    B = torch.cat([pair.B, other.B * (other.scale / pair.scale)], dim=1)
    return LoraPair(torch.cat([pair.A, other.A]), B, pair.scale)


def trained_components(pair: LoraPair, row: Mask, cut: bool) -> Tensor:
    """Say which components of a dispatched pair are trained, (rank,) bool.

    `row` (max_rank,) names components of the global adapter. A pair that is `cut` has only those, in their order.
    """
    if pair.rank != (row.sum() if cut else len(row)):
        how = "cut" if cut else "whole"
        raise ValueError(f"a {how} pair of rank {pair.rank} was sent to train {row.sum()} of {len(row)} components")
    return torch.ones(pair.rank, dtype=torch.bool) if cut else torch.tensor(row)


def trained_part(adapter: Adapter, trained: Mask, spec: AdapterSpec, cut: bool = False) -> Adapter:
    """Return the components that `trained` (layers, max_rank) switches on; frozen layers and the head are absent."""
    pairs = {}
    for module in spec.modules:
        if trained[module.layer].any():
            pair = adapter.pairs[module.name]
            pairs[module.name] = components(pair, trained_components(pair, trained[module.layer], cut))
    return Adapter(pairs)


def prototype_row(trained: Mask) -> Mask:
    """Return a client's row over the components of the prototype of its rank, (layers, rank).

    Its rank is the most components that it trains in a layer. A prototype has as many; where the client trains fewer,
    they are the first ones. The prototype of the largest rank is the global adapter, of which it trains what `trained`
    says.
    """
    counts = trained.sum(axis=1)
    rank = int(counts.max())
    return trained if rank == trained.shape[1] else np.arange(rank) < counts[:, None]


def prototype_of(adapter: Adapter, rank: int, spec: AdapterSpec) -> Adapter:
    """Return the global adapter of one rank, alone. Where that does not exist yet, take the first `rank` components."""
    if rank in adapter.prototypes:
        return adapter.prototypes[rank]
    pairs = adapter.pairs
    if rank < spec.max_rank:
        pairs = {name: components(pair, torch.arange(rank)) for name, pair in pairs.items()}
    return replace(adapter, pairs=pairs, prototypes={})


def prototypes_of(adapter: Adapter, spec: AdapterSpec) -> dict[int, Adapter]:
    """Return every global adapter that exists, by its rank, ascending; the last one is the global adapter."""
    return {rank: prototype_of(adapter, rank, spec) for rank in (*sorted(adapter.prototypes), spec.max_rank)}


def with_prototypes(by_rank: Mapping[int, Adapter]) -> Adapter:
    """Undo `prototypes_of`: return the adapter of the largest rank, with the others as its prototypes."""
    *smaller, largest = sorted(by_rank)
    return replace(by_rank[largest], prototypes={rank: by_rank[rank] for rank in smaller})


def mean_head(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted mean of the adapters' heads, by parameter name."""
    return {name: weighted_mean([a.head[name] for a in adapters], weights) for name in adapters[0].head}


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return Σ w·x / Σ w, summed in float64 in the order given, in the dtype of the first tensor."""
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        total += weight * tensor.to(torch.float64)
    return (total / sum(weights)).to(tensors[0].dtype)


def in_float64(adapter: Adapter) -> Adapter:
    """Return the adapter with its pairs in float64, so that their mean is not rounded yet."""
    pairs = {name: LoraPair(pair.A.double(), pair.B.double(), pair.scale) for name, pair in adapter.pairs.items()}
    return replace(adapter, pairs=pairs)
