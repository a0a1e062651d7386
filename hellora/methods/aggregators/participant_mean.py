"""Fed-HeLLo (Zhang et al., arXiv 2506.12213), Eq. 3: layer-wise mean over the clients that trained the layer.

    θ_j ← Σ_{i∈C_j} w_i θ_ij / Σ_{i∈C_j} w_i   where C_j = {i : client i trained layer j};  θ_j unchanged if C_j = ∅

A and B are averaged factor-wise. The rule is applied per rank component. With prefixes of unequal ranks it is therefore
RBLA (arXiv 2408.08699), which others call RB-LoRA: component q is the mean over the clients of rank q or more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hellora.core.exchange import ClientUpdate
from hellora.core.state import StrategyState
from hellora.core.types import Adapter, LoraPair, ModuleSpec
from hellora.methods.context import RoundContext
from hellora.methods.contributions import Weighting, aggregated_head, check_weighting, in_order
from hellora.methods.demands import AVERAGES_COMPONENTS, MEAN_OF_EQUALS, RETURNS_THE_ONLY_ONE, Demands
from hellora.methods.strategies import Aggregator, Answers


@dataclass(frozen=True)
class ParticipantMean(Aggregator):
    """Mean over the clients that trained a component, weighted by their examples (tokens, of language) or uniformly."""

    weighting: Weighting = "samples"

    def __post_init__(self) -> None:
        check_weighting(self.weighting)

    @property
    def demands(self) -> Demands:
        return AVERAGES_COMPONENTS.also(promises={MEAN_OF_EQUALS, RETURNS_THE_ONLY_ONE})

    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        if not answers:
            return context.adapter, {}
        adapter, spec = context.adapter, context.spec
        by_id = in_order(answers)
        pairs = {}
        for module in spec.modules:
            old, parts = adapter.pairs[module.name], trained_pairs(by_id, module)
            A = component_mean(old.A, [(rows, pair.A, self.weight(update)) for update, rows, pair in parts])
            B = component_mean(old.B.T, [(rows, pair.B.T, self.weight(update)) for update, rows, pair in parts])
            pairs[module.name] = LoraPair(A, B.T.contiguous(), old.scale)
        return replace(adapter, pairs=pairs, head=aggregated_head(answers, self.weighting)), {}

    def weight(self, update: ClientUpdate) -> float:
        return update.weight if self.weighting == "samples" else 1.0


def trained_pairs(answers: Answers, module: ModuleSpec) -> list[tuple[ClientUpdate, Tensor, LoraPair]]:
    """Of every client that trained a module: its update, which components it trained (max_rank,) bool, their pair."""
    return [
        (update, torch.tensor(task.trained[module.layer]), update.adapter.pairs[module.name])
        for task, update in answers
        if module.name in update.adapter.pairs
    ]


def component_mean(old: Tensor, parts: Sequence[tuple[Tensor, Tensor, float]]) -> Tensor:
    """Per row of `old` (max_rank, d), the weighted mean over the parts that have the row; `old` where none has.

    A part is: which rows it has, (max_rank,) bool; their values, (rank, d); its weight.
    """
    total = torch.zeros_like(old, dtype=torch.float64)
    weight_of_row = torch.zeros(len(old), 1, dtype=torch.float64)
    for rows, values, weight in parts:
        total[rows] += weight * values.double()
        weight_of_row[rows] += weight
    return torch.where(weight_of_row > 0, total / weight_of_row, old.double()).to(old.dtype)
