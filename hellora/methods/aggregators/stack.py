"""FLoRA (Wang et al., NeurIPS 2024, arXiv 2409.05976): stack the clients' factors, and begin every round afresh.

    residual ← residual + Σ_k p_k s_k B_k A_k        A ← drawn anew,  B ← 0

The sum is kept as factors beside the base, which is never written to. FLoRIST (MLSys 2026, arXiv 2506.09199) keeps the
fewest singular directions of a round's sum that hold the share `energy` of its squared norm.

The sum is that of the changes, ΔW + Σ_k p_k (s_k B_k A_k − D_k), which is the above where the global adapter began
with B = 0, or where every client trained all of it; what nobody trained of the global adapter is not lost.
"""

from dataclasses import dataclass, replace

from hellora.core.algebra import new_pair
from hellora.core.low_rank import grown, thin_svd
from hellora.core.state import StrategyState
from hellora.core.types import Adapter
from hellora.methods.context import RoundContext
from hellora.methods.contributions import Weighting, aggregated_head, check_weighting, contributions, mean_moved
from hellora.methods.demands import (
    BOUNDED_ADAPTER,
    FACTORISES_ANEW,
    MEAN_OF_EQUALS,
    RETURNS_THE_ONLY_ONE,
    TRAINS_B_EVERY_ROUND,
    Demands,
)
from hellora.methods.strategies import Aggregator, Answers


@dataclass(frozen=True)
class Stack(Aggregator):
    """Moves the sum of the clients' products to the base as factors, and starts the adapter anew (FLoRA, FLoRIST).

    It is exact for any ranks with energy = 1 and no `residual_rank`. The residual and with it the download grow every
    round, and a fresh global adapter knows nothing of its past. It is not for methods that train A while B = 0: they
    would never move.
    """

    weighting: Weighting = "samples"  # clients count by their examples, or alike
    energy: float = 1.0  # of each round's sum; 1 keeps all of it
    residual_rank: int | None = None  # at most, by SVD; None: the smaller side of the matrix, which loses nothing

    def __post_init__(self) -> None:
        check_weighting(self.weighting)
        if not 0 < self.energy <= 1:
            raise ValueError(f"energy must be in (0, 1], not {self.energy}")
        if self.residual_rank is not None and self.residual_rank < 1:
            raise ValueError(f"residual_rank must be at least 1, not {self.residual_rank}")

    @property
    def demands(self) -> Demands:
        return FACTORISES_ANEW.less(BOUNDED_ADAPTER).also(
            needs={TRAINS_B_EVERY_ROUND}, promises={MEAN_OF_EQUALS, RETURNS_THE_ONLY_ONE}
        )

    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        if not answers:
            return context.adapter, {}
        adapter, spec = context.adapter, context.spec
        pairs, residual = dict(adapter.pairs), dict(adapter.residual)
        for module in spec.modules:
            if parts := contributions(module, answers, self.weighting):
                global_pair, side = pairs[module.name], min(module.d_in, module.d_out)
                added = thin_svd(mean_moved(global_pair, parts)).truncated(side, self.energy)
                limit = self.residual_rank or side
                if new := grown(residual.get(module.name), added, limit, global_pair.A.dtype):
                    residual[module.name] = new
                pairs[module.name] = new_pair(module, spec, context.seed_for("aggregate"))
        head = aggregated_head(answers, self.weighting)
        return replace(adapter, pairs=pairs, head=head, residual=residual), {}
