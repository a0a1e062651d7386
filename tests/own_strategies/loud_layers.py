"""An allocator of a user's own: every client trains the layers whose reported gradients are the largest."""

from dataclasses import dataclass

import numpy as np
import torch

from hellora.core import Allocation, StrategyState
from hellora.methods import Allocator, Demands, RoundContext


@dataclass(frozen=True)
class LoudLayers(Allocator):
    """The layers of the largest scores that clients reported last; the deepest at first."""

    forget: float = 0.5  # of what was known of a layer when it is reported again

    @property
    def demands(self) -> Demands:
        return Demands(brings=("layer_scores",))

    def allocate(self, context: RoundContext) -> tuple[Allocation, StrategyState]:
        depth = torch.arange(context.spec.num_layers, dtype=torch.float64) * 1e-9
        known = context.state.get("known", depth)
        if told := context.reported("layer_scores/scores"):
            new = torch.stack([told[client] for client in sorted(told)]).nanmean(0)
            known = torch.where(new.isnan(), known, self.forget * new + (1 - self.forget) * known)
        order = np.argsort(-known.numpy(), kind="stable")
        return context.largest_allocation(lambda _, count: np.sort(order[:count])), {"known": known}
