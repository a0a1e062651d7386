"""raFLoRA (arXiv 2602.13486): each range of ranks is averaged over the clients that own it.

    r_1 < … < r_G the clients' ranks, r_0 = 0;   s_k B_k A_k = Σ_q σ_kq u_kq v_kqᵀ
    ΔW ← SVD_R( Σ_g Σ_{k: r_k ≥ r_g} p_kg Σ_{r_{g−1} < q ≤ r_g} σ_kq u_kq v_kqᵀ ),   Σ_k p_kg = 1 for each g

The components beyond the smallest rank are thus not diluted by clients that were never sent them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from hellora.core.low_rank import Term, thin_svd
from hellora.core.state import StrategyState
from hellora.core.types import Adapter, LoraPair
from hellora.methods.context import RoundContext
from hellora.methods.contributions import Contribution, Weighting, check_weighting, factorised_anew
from hellora.methods.demands import FACTORISES_ANEW, MEAN_OF_EQUALS, RETURNS_THE_ONLY_ONE, Demands
from hellora.methods.strategies import Aggregator, Answers


@dataclass(frozen=True)
class RankPartition(Aggregator):
    """Averages the clients' products, each range of singular directions over the clients of its rank (raFLoRA).

    It assumes that the q-th directions of different clients mean the same, as after SVD dispatch. With equal ranks it
    is product_svd. It is biased with unequal ones: what a small client leaves out still pulls its first directions.
    """

    weighting: Weighting = "samples"  # clients count by their examples, or alike

    def __post_init__(self) -> None:
        check_weighting(self.weighting)

    @property
    def demands(self) -> Demands:
        return FACTORISES_ANEW.also(promises={MEAN_OF_EQUALS, RETURNS_THE_ONLY_ONE})

    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        return factorised_anew(context, answers, self.weighting, lambda _, parts: mean_by_partition(parts)), {}


def mean_by_partition(parts: Sequence[Contribution]) -> list[Term]:
    """Return one term per client: its product with every singular direction in the weight p_kg of its range."""
    ranks = [part.after.rank + part.rest.rank for part in parts]
    terms: list[Term] = []
    for part, rank in zip(parts, ranks, strict=True):
        weights = torch.zeros(rank, dtype=torch.float64)
        for low, high in pairwise([0, *sorted(set(ranks))]):
            if rank >= high:
                weights[low:high] = part.share / sum(p.share for p, r in zip(parts, ranks, strict=True) if r >= high)
        own = thin_svd([(1.0, part.after), (1.0, part.rest)])
        terms.append((1.0, LoraPair(own.Vh, own.U * own.S * weights[: own.rank], 1.0)))
    return terms
