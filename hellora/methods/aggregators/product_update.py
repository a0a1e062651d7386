"""Average what clients changed, not what they hold: FlexLoRA (arXiv 2402.11505) in update form.

    ΔW ← SVD_R( ΔW + η Σ_k p_k (s_k B_k A_k − D_k) ),   D_k = what client k trained, as it was dispatched

A component that was not sent to a client, or not trained by it, is not counted as 0, so that there is no rank collapse.
The update form is ours; with η = 1 and nothing cut off at dispatch it is FlexLoRA.
"""

from dataclasses import dataclass
from functools import partial

from hellora.core.state import StrategyState
from hellora.core.types import Adapter
from hellora.methods.context import RoundContext
from hellora.methods.contributions import Weighting, check_weighting, factorised_anew, mean_moved
from hellora.methods.demands import FACTORISES_ANEW, MEAN_OF_EQUALS, RETURNS_THE_ONLY_ONE, Demands
from hellora.methods.strategies import Aggregator, Answers


@dataclass(frozen=True)
class ProductUpdate(Aggregator):
    """Adds the mean change of the clients' products B A to the global adapter, and cuts it to its rank by SVD.

    It is exact up to that cut. A component that few clients train moves by their share of the weights only.
    """

    weighting: Weighting = "samples"  # clients count by their examples, or alike
    eta: float = 1.0  # the server's learning rate

    def __post_init__(self) -> None:
        check_weighting(self.weighting)
        if not self.eta > 0:
            raise ValueError(f"eta must be greater than 0, not {self.eta}")

    @property
    def demands(self) -> Demands:
        return FACTORISES_ANEW.also(promises={MEAN_OF_EQUALS, RETURNS_THE_ONLY_ONE})

    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        terms = partial(mean_moved, eta=self.eta)
        return factorised_anew(context, answers, self.weighting, terms), {}
