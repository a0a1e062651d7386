"""FedEx-LoRA (Singhal et al., ACL 2025, arXiv 2410.09432): average the factors, and keep what the average misses.

    B̄ = Σ_k p_k B_k,  Ā = Σ_k p_k A_k        residual ← residual + Σ_k p_k s_k B_k A_k − s B̄ Ā

The paper has equal ranks. With unequal ones each component is averaged over the clients that trained it, and what is
missed is counted from the changes: ΔW + Σ_k p_k (s_k B_k A_k − D_k) − s B̄ Ā.
"""

from dataclasses import dataclass, replace

from hellora.core.algebra import in_float64
from hellora.core.low_rank import grown, thin_svd
from hellora.core.state import StrategyState
from hellora.core.types import Adapter, LoraPair
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.context import RoundContext
from hellora.methods.contributions import Weighting, check_weighting, contributions, mean_moved
from hellora.methods.demands import (
    AVERAGES_COMPONENTS,
    BOUNDED_ADAPTER,
    LASTING_COMPONENTS,
    MEAN_OF_EQUALS,
    RETURNS_THE_ONLY_ONE,
    Demands,
)
from hellora.methods.strategies import Aggregator, Answers


@dataclass(frozen=True)
class Residual(Aggregator):
    """Averages the factors, and keeps what the mean misses in a frozen residual beside the base (FedEx-LoRA).

    It is exact without `residual_rank`. The residual and with it the download grow, up to the smaller side of the
    matrix.
    """

    weighting: Weighting = "samples"  # clients count by their examples, or alike
    residual_rank: int | None = None  # at most, by SVD; None: the smaller side of the matrix, which loses nothing

    def __post_init__(self) -> None:
        check_weighting(self.weighting)
        if self.residual_rank is not None and self.residual_rank < 1:
            raise ValueError(f"residual_rank must be at least 1, not {self.residual_rank}")

    @property
    def demands(self) -> Demands:
        return AVERAGES_COMPONENTS.less(LASTING_COMPONENTS, BOUNDED_ADAPTER).also(
            promises={MEAN_OF_EQUALS, RETURNS_THE_ONLY_ONE}
        )

    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        if not answers:
            return context.adapter, {}
        adapter, spec = context.adapter, context.spec
        unrounded = replace(context, adapter=in_float64(adapter))
        mean, _ = ParticipantMean(self.weighting).aggregate(unrounded, answers)
        pairs, residual = dict(adapter.pairs), dict(adapter.residual)
        for module in spec.modules:
            if parts := contributions(module, answers, self.weighting):
                global_pair, new = pairs[module.name], mean.pairs[module.name]
                missed = thin_svd([*mean_moved(global_pair, parts), (-1.0, new)])
                limit = self.residual_rank or min(module.d_in, module.d_out)
                if rest := grown(residual.get(module.name), missed, limit, global_pair.A.dtype):
                    residual[module.name] = rest
                pairs[module.name] = LoraPair(
                    new.A.to(global_pair.A.dtype), new.B.to(global_pair.B.dtype), global_pair.scale
                )
        return replace(adapter, pairs=pairs, head=mean.head, residual=residual), {}
