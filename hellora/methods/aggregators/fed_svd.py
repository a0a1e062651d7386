"""FedSVD (Lee et al., NeurIPS 2025, arXiv 2505.12805): clients train B alone, and an SVD lets A learn on the server.

    B̄ = Σ_k p_k B_k;  every `period` rounds  U Σ Vᵀ = SVD(s B̄ A),  A ← Vᵀ,  B ← U Σ / s

What clients upload enters linearly, and the rows of A are orthonormal from the first SVD on. With unequal ranks the
changes are averaged: B̄ = B + Σ_k p_k (B_k − B) on the components that client k trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hellora.core.algebra import new_pair
from hellora.core.errors import InputError
from hellora.core.low_rank import ThinSVD, thin_svd
from hellora.core.state import StrategyState
from hellora.core.types import Adapter, AdapterSpec, LoraPair
from hellora.methods.context import RoundContext
from hellora.methods.contributions import Contribution, Weighting, aggregated_head, check_weighting, contributions
from hellora.methods.demands import (
    FACTORISES_ANEW,
    MEAN_OF_EQUALS,
    OWN_COMPONENTS,
    RETURNS_THE_ONLY_ONE,
    TRAINS_ONLY_B,
    Demands,
)
from hellora.methods.strategies import Aggregator, Answers


@dataclass(frozen=True)
class FedSvd(Aggregator):
    """Averages B over a shared A, and re-factorises by SVD every few rounds so that A moves too (FedSVD).

    It is exact. It assumes that clients train B only. A turns within the row space that it has, and leaves it only
    where B has not grown to its full rank. It needs max_rank <= d_in.
    """

    weighting: Weighting = "samples"  # clients count by their examples, or alike
    period: int = 1  # rounds from one SVD to the next

    def __post_init__(self) -> None:
        check_weighting(self.weighting)
        if self.period < 1:
            raise ValueError(f"period must be at least 1, not {self.period}")

    def check(self, spec: AdapterSpec) -> None:
        narrowest = min(module.d_in for module in spec.modules)
        if spec.max_rank > narrowest:
            raise InputError(
                f"model.rank = {spec.max_rank} is more than the {narrowest} inputs of a module, so that fed_svd has no "
                f"orthonormal rows to begin with: set model.rank = {narrowest} or less"
            )

    @property
    def demands(self) -> Demands:
        return FACTORISES_ANEW.also(
            needs={OWN_COMPONENTS, TRAINS_ONLY_B}, promises={MEAN_OF_EQUALS, RETURNS_THE_ONLY_ONE}
        )

    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        if not answers:
            return context.adapter, {}
        adapter, spec = context.adapter, context.spec
        due = (answers[0][0].round + 1) % self.period == 0
        pairs = dict(adapter.pairs)
        for module in spec.modules:
            if parts := contributions(module, answers, self.weighting):
                global_pair = pairs[module.name]
                B = mean_B(global_pair, parts)
                pairs[module.name] = LoraPair(global_pair.A, B.to(global_pair.B.dtype).contiguous(), global_pair.scale)
                if due:
                    found = thin_svd([(1.0, LoraPair(global_pair.A, B, global_pair.scale))])
                    fresh = new_pair(module, spec, context.seed_for("aggregate"))
                    pairs[module.name] = orthonormal(found, global_pair, fresh.A)
        return replace(adapter, pairs=pairs, head=aggregated_head(answers, self.weighting)), {}


def mean_B(global_pair: LoraPair, parts: Sequence[Contribution]) -> Tensor:
    """Return B̄ (d_out, max_rank) in float64."""
    left = torch.ones(global_pair.rank, dtype=torch.float64)
    moved = torch.zeros_like(global_pair.B, dtype=torch.float64)
    for part in parts:
        left[part.rows] -= part.share
        moved[:, part.rows] += part.share * (part.after.scale / global_pair.scale) * part.after.B.double()
    return left * global_pair.B.double() + moved


def orthonormal(found: ThinSVD, global_pair: LoraPair, idle_A: Tensor) -> LoraPair:
    """Return A = Vᵀ and B = U Σ / s like `global_pair`; missing directions come from `idle_A` and have B = 0."""
    fresh = idle_A[found.rank :].double()
    basis = torch.linalg.qr(torch.cat([found.Vh, fresh]).T).Q.T  # (max_rank, d_in); its first rows are ± those of Vh
    A = torch.cat([found.Vh, basis[found.rank :]])
    B = torch.nn.functional.pad(found.U * found.S / global_pair.scale, (0, len(fresh)))
    return LoraPair(A.to(global_pair.A.dtype).contiguous(), B.to(global_pair.B.dtype).contiguous(), global_pair.scale)
