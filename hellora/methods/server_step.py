"""The server's optimizer step on the aggregated delta (FedAvgM, Hsu et al. 2019)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hellora.core.types import Adapter, AdapterSpec, LoraPair, Mask, Memory


@dataclass(frozen=True)
class ServerStep:
    """v ← momentum · v + (aggregated - adapter);  adapter ← adapter + lr · v.

    Only components that somebody trained move, and only their velocity changes: a layer, or a factor, left alone in
    a round stays bit-identical. With lr = 1 and momentum = 0 the aggregated adapter is taken as it is.
    """

    lr: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not self.lr > 0 or not 0 <= self.momentum < 1:
            raise ValueError("the server's lr must be greater than 0, and its momentum in [0, 1)")

    def apply(
        self,
        adapter: Adapter,
        aggregated: Adapter,
        trained: Mask,
        velocity: Memory,
        spec: AdapterSpec,
        factors: frozenset[str] = frozenset("AB"),
    ) -> tuple[Adapter, Memory]:
        """One step. `trained` (layers, max_rank): the components that any counted update trained; of them, `factors`.

        Returns the next adapter, and the velocity by flat tensor name (empty without momentum). Residual and prototypes
        are those of `aggregated`.
        """
        if self.lr == 1 and self.momentum == 0:
            return aggregated, {}
        new_velocity = dict(velocity)

        def step(name: str, old: Tensor, new: Tensor, moves: Tensor) -> Tensor:
            delta = new.double() - old.double()
            if self.momentum:
                v = velocity.get(name, torch.zeros_like(delta))
                delta = torch.where(moves, self.momentum * v + delta, v)
                new_velocity[name] = delta
            return torch.where(moves, old.double() + self.lr * delta, old.double()).to(old.dtype)

        pairs = {}
        for name, pair in adapter.pairs.items():
            moves = torch.tensor(trained[spec.layer_of[name]])
            A = step(f"{name}.lora_A", pair.A, aggregated.pairs[name].A, moves[:, None] & ("A" in factors))
            B = step(f"{name}.lora_B", pair.B, aggregated.pairs[name].B, moves[None, :] & ("B" in factors))
            pairs[name] = LoraPair(A, B, pair.scale)
        always = torch.tensor(bool(trained.any()))
        head = {n: step(f"head.{n}", old, aggregated.head[n], always) for n, old in adapter.head.items()}
        return replace(aggregated, pairs=pairs, head=head), new_velocity
