"""A sampler of a user's own: clients are asked in turn, whoever was asked longest ago first."""

from dataclasses import dataclass

import torch

from hellora.core import ClientProfile, StrategyState
from hellora.methods import RoundContext, Sampler


@dataclass(frozen=True)
class InTurn(Sampler):
    """Remembers the last round in which each client was asked."""

    def sample(self, context: RoundContext) -> tuple[tuple[ClientProfile, ...], StrategyState]:
        last = dict(context.state["last"].tolist()) if "last" in context.state else {}
        order = sorted(context.able, key=lambda client: (last.get(client.id, -1), client.id))
        chosen = order[: context.asked]
        last |= {client.id: context.round for client in chosen}
        rounds = torch.tensor(sorted(last.items()), dtype=torch.int64)  # (clients, 2): id and round
        return tuple(sorted(chosen, key=lambda client: client.id)), {"last": rounds}
