"""LoRA-FAIR (Bian et al., ICCV 2025, arXiv 2411.14961): average the factors, then move B towards the mean product.

    min over ΔB of ‖E − s ΔB Ā‖² + λ s² ‖ΔB‖²:   ΔB = E Āᵀ (Ā Āᵀ + λ I)⁻¹ / s,   E = Σ_k p_k s_k B_k A_k − s B̄ Ā

The paper takes the cosine in place of the first norm and descends by gradient; this ridge form has a closed solution.
E is never built: E Āᵀ comes from the stacked factors. It counts the clients' changes, ΔW + Σ_k p_k (s_k B_k A_k − D_k).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hellora.core.algebra import in_float64
from hellora.core.low_rank import stacked
from hellora.core.state import StrategyState
from hellora.core.types import Adapter, LoraPair
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.context import RoundContext
from hellora.methods.contributions import Contribution, Weighting, check_weighting, contributions, mean_moved
from hellora.methods.demands import AVERAGES_COMPONENTS, RETURNS_THE_ONLY_ONE, Demands
from hellora.methods.strategies import Aggregator, Answers


@dataclass(frozen=True)
class Refine(Aggregator):
    """Averages the factors, and corrects B so that B A comes closer to the mean product (LoRA-FAIR).

    It is not exact: what lies outside the row space of the mean A stays missed. Nothing beyond the global adapter is
    sent.
    """

    weighting: Weighting = "samples"  # clients count by their examples, or alike
    ridge: float = 0.01  # λ, beside the squared lengths of A's rows

    def __post_init__(self) -> None:
        check_weighting(self.weighting)
        if not self.ridge > 0:
            raise ValueError(f"ridge must be greater than 0, not {self.ridge}")

    @property
    def demands(self) -> Demands:
        return AVERAGES_COMPONENTS.also(promises={RETURNS_THE_ONLY_ONE})

    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        if not answers:
            return context.adapter, {}
        adapter, spec = context.adapter, context.spec
        unrounded = replace(context, adapter=in_float64(adapter))
        mean, _ = ParticipantMean(self.weighting).aggregate(unrounded, answers)
        pairs = dict(adapter.pairs)
        for module in spec.modules:
            if parts := contributions(module, answers, self.weighting):
                global_pair, new = pairs[module.name], mean.pairs[module.name]
                B = self.refined(global_pair, new, parts)
                pairs[module.name] = LoraPair(
                    new.A.to(global_pair.A.dtype), B.to(global_pair.B.dtype).contiguous(), global_pair.scale
                )
        return replace(adapter, pairs=pairs, head=mean.head), {}

    def refined(self, global_pair: LoraPair, mean: LoraPair, parts: list[Contribution]) -> Tensor:
        """Return B̄ + ΔB (d_out, max_rank), where ΔB moves only the components that somebody trained."""
        rows = torch.stack([part.rows for part in parts]).any(dim=0)
        missed, A = stacked([*mean_moved(global_pair, parts), (-1.0, mean)]), mean.A[rows]
        gram = A @ A.T + self.ridge * torch.eye(len(A), dtype=torch.float64)
        delta = missed.B @ torch.linalg.solve(gram, A @ missed.A.T).T / mean.scale
        B = mean.B.clone()
        B[:, rows] += delta
        return B
