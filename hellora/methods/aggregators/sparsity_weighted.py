"""HetLoRA (Cho et al., EMNLP 2024, arXiv 2401.06432): pad with zeros, and weigh by the size of each client's update.

    X_q = Σ_k p_k X_kq with p_k = ‖ΔW_k‖_F / Σ_i ‖ΔW_i‖_F,  ΔW_k = scale · B_k A_k,  X = A, B

X_kq = 0 where client k has no component q. ΔW_k belongs to one weight matrix, so p_k is computed module by module, over
the clients that trained the module. Examples count for the head only. Where every ΔW_k is zero, all p_k are equal.
"""

from dataclasses import dataclass, replace

from hellora.core.low_rank import norm
from hellora.core.state import StrategyState
from hellora.core.types import Adapter
from hellora.methods.aggregators.context_pad import padded_mean
from hellora.methods.context import RoundContext
from hellora.methods.contributions import aggregated_head, in_order, trained_pairs
from hellora.methods.demands import ALL_SHARED, AVERAGES_COMPONENTS, ONLY_TRAINED, RETURNS_THE_ONLY_ONE, Demands
from hellora.methods.strategies import Aggregator, Answers


@dataclass(frozen=True)
class SparsityWeighted(Aggregator):
    """Pads with zeros, and lets clients with a larger update weigh more."""

    @property
    def demands(self) -> Demands:
        return AVERAGES_COMPONENTS.also(needs={ONLY_TRAINED, ALL_SHARED}, promises={RETURNS_THE_ONLY_ONE})

    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        if not answers:
            return context.adapter, {}
        adapter, spec = context.adapter, context.spec
        by_id = in_order(answers)
        pairs = {}
        for module in spec.modules:
            found = trained_pairs(by_id, module)
            norms = [norm(pair) for _, _, pair in found]
            weights = norms if any(norms) else [1.0] * len(norms)
            parts = [(rows, pair, weight) for (_, rows, pair), weight in zip(found, weights, strict=True)]
            pairs[module.name] = padded_mean(adapter.pairs[module.name], parts, "zero", gamma=1.0)
        return replace(adapter, pairs=pairs, head=aggregated_head(answers, "samples")), {}
