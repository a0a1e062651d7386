"""Krum (Blanchard et al., NeurIPS 2017): of unequal updates the one that its neighbours are nearest to.

score_k = Σ of the n − f − 2 smallest ‖Δ_k − Δ_i‖²;   the next adapter is that of the client of the lowest score
"""

from dataclasses import dataclass, replace

import torch

from hellora.core import Adapter, LoraPair, StrategyState
from hellora.methods import Aggregator, Answers, RoundContext, in_order


@dataclass(frozen=True)
class Krum(Aggregator):
    """What one client trained, and nothing of the others; what it did not train stays."""

    dishonest: int = 1  # f

    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        if not answers:
            return context.adapter, {}
        by_id = in_order(answers)
        adapters = [self.taken(context, task.trained, update.adapter) for task, update in by_id]
        flat = [torch.cat([t.double().flatten() for t in each.tensors().values()]) for each in adapters]
        nearest = max(1, len(flat) - self.dishonest - 2)
        scores = []
        for k, one in enumerate(flat):
            distances = sorted(float((one - other).square().sum()) for i, other in enumerate(flat) if i != k)
            scores.append(sum(distances[:nearest]))
        return adapters[scores.index(min(scores))], {}

    def taken(self, context: RoundContext, trained: object, update: Adapter) -> Adapter:
        """The global adapter with one client's components in place of its own."""
        pairs = dict(context.adapter.pairs)
        for module in context.spec.modules:
            if (new := update.pairs.get(module.name)) is not None:
                rows = torch.as_tensor(trained)[module.layer]
                A, B = pairs[module.name].A.clone(), pairs[module.name].B.clone()
                A[rows], B[:, rows] = new.A, new.B
                pairs[module.name] = LoraPair(A, B, pairs[module.name].scale)
        return replace(context.adapter, pairs=pairs, head={**context.adapter.head, **update.head})
