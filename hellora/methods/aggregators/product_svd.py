"""FlexLoRA (Bai et al., NeurIPS 2024, arXiv 2402.11505) and HLoRA (arXiv 2503.00813): average products, factorise anew.

    ΔW ← SVD_R( Σ_k p_k s_k B_k A_k )

B_k A_k is all that acts at client k. The SVD is split evenly, √Σ on both sides, so that both factors learn at one rate.
"""

from dataclasses import dataclass

from hellora.core.state import StrategyState
from hellora.core.types import Adapter
from hellora.methods.context import RoundContext
from hellora.methods.contributions import Weighting, check_weighting, factorised_anew, mean_held
from hellora.methods.demands import FACTORISES_ANEW, MEAN_OF_EQUALS, RETURNS_THE_ONLY_ONE, Demands
from hellora.methods.strategies import Aggregator, Answers


@dataclass(frozen=True)
class ProductSvd(Aggregator):
    """Averages the clients' products B A, and cuts the mean to the global adapter's rank by SVD (FlexLoRA).

    It is exact up to that cut. What a client was not sent counts as 0 in its product: with unequal ranks under
    truncation the components beyond the smallest rank fade from round to round (rank collapse, arXiv 2602.13486).
    """

    weighting: Weighting = "samples"  # clients count by their examples, or alike

    def __post_init__(self) -> None:
        check_weighting(self.weighting)

    @property
    def demands(self) -> Demands:
        return FACTORISES_ANEW.also(promises={MEAN_OF_EQUALS, RETURNS_THE_ONLY_ONE})

    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        return factorised_anew(context, answers, self.weighting, mean_held), {}
