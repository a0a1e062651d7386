"""FlexLoRA (Bai et al., NeurIPS 2024, arXiv 2402.11505): a client of rank r receives the best rank-r adapter there is.

    U Σ Vᵀ = SVD(s B A);   B_k = U_r √(Σ_r / s),  A_k = √(Σ_r / s) V_rᵀ

For a global adapter that an SVD made it is `truncate`. A layer in which the client trains nothing still acts whole.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hellora.core.low_rank import thin_svd, to_global
from hellora.core.types import Adapter, AdapterSpec, LoraPair, Mask, Sent
from hellora.methods.context import RoundContext
from hellora.methods.demands import ONLY_TRAINED, Demands
from hellora.methods.strategies import Dispatcher


@dataclass(frozen=True)
class Svd(Dispatcher):
    """Sends the best approximation of the global B A in the client's rank, whichever components its row names."""

    @property
    def demands(self) -> Demands:
        return Demands(promises=frozenset({ONLY_TRAINED}))  # but none of the global adapter's own components

    def sends(self, trained: Mask, spec: AdapterSpec) -> Sent:
        ranks = trained.sum(axis=1)
        return Sent(np.where(ranks > 0, ranks, spec.max_rank), cut=True)

    def dispatch(self, context: RoundContext, adapter: Adapter, trained: Mask) -> Adapter:
        pairs = dict(adapter.pairs)
        for module in context.spec.modules:
            if 0 < (rank := int(trained[module.layer].sum())) < context.spec.max_rank:
                global_pair = pairs[module.name]
                pairs[module.name] = to_global(
                    thin_svd([(1.0, global_pair)], rank), global_pair.scale, idle_rows(global_pair, rank)
                )
        return replace(adapter, pairs=pairs, prototypes={})


def idle_rows(global_pair: LoraPair, rank: int) -> Tensor:
    """Return rows of A (rank, d_in) for a global product of less than this rank: those that have B = 0 come last."""
    order = torch.argsort((global_pair.B == 0).all(dim=0).int(), stable=True)
    return global_pair.A[order][:rank]
