"""Take a server optimizer's step where something may move, and nowhere else."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from hellora.core.types import Adapter, LoraPair, Mask
from hellora.methods.context import RoundContext


def stepped(
    context: RoundContext,
    aggregated: Adapter,
    trained: Mask,
    factors: frozenset[str],
    move: Callable[[str, Tensor, Tensor], Tensor],
) -> Adapter:
    """Return the global adapter with `move(flat name, delta, moves)` added to each tensor, in float64, where it
    `moves`.

    The delta is aggregated minus global. Residual and prototypes are those of `aggregated`.
    """
    adapter, spec = context.adapter, context.spec

    def step(name: str, old: Tensor, new: Tensor, moves: Tensor) -> Tensor:
        moved = old.double() + move(name, new.double() - old.double(), moves)
        return torch.where(moves, moved, old.double()).to(old.dtype)

    pairs = {}
    for name, pair in adapter.pairs.items():
        moves = torch.tensor(trained[spec.layer_of[name]])
        A = step(f"{name}.lora_A", pair.A, aggregated.pairs[name].A, moves[:, None] & ("A" in factors))
        B = step(f"{name}.lora_B", pair.B, aggregated.pairs[name].B, moves[None, :] & ("B" in factors))
        pairs[name] = LoraPair(A, B, pair.scale)
    always = torch.tensor(bool(trained.any() or context.trained))  # the head may be all that clients train
    head = {n: step(f"head.{n}", old, aggregated.head[n], always) for n, old in adapter.head.items()}
    return replace(aggregated, pairs=pairs, head=head)
