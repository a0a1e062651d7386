"""Fed-HeLLo (Zhang et al., arXiv 2506.12213), Eq. 3: average each layer over the clients that trained it.

    θ_j ← Σ_{i∈C_j} w_i θ_ij / Σ_{i∈C_j} w_i   where C_j = {i : client i trained layer j};  θ_j unchanged if C_j = ∅

In the paper w_i = 1 (`weighting = "uniform"`); by default w_i = n_i, the client's examples. A and B are averaged
factor-wise, the head over all that answered. The rule is applied per rank component. With prefixes of unequal ranks it
is therefore RBLA (arXiv 2408.08699), which others call RB-LoRA: component q is the mean over the clients of rank q or
more.
"""

from dataclasses import dataclass

from hellora.core.exchange import ClientUpdate
from hellora.core.state import StrategyState
from hellora.core.types import Adapter
from hellora.methods.context import RoundContext
from hellora.methods.contributions import Weighting, check_weighting, mean_by_component
from hellora.methods.demands import AVERAGES_COMPONENTS, MEAN_OF_EQUALS, RETURNS_THE_ONLY_ONE, Demands
from hellora.methods.strategies import Aggregator, Answers


@dataclass(frozen=True)
class ParticipantMean(Aggregator):
    """Averages over the clients that trained a component, weighted by examples (tokens, of language) or uniformly."""

    weighting: Weighting = "samples"  # clients count by their examples, or alike

    def __post_init__(self) -> None:
        check_weighting(self.weighting)

    @property
    def demands(self) -> Demands:
        return AVERAGES_COMPONENTS.also(promises={MEAN_OF_EQUALS, RETURNS_THE_ONLY_ONE})

    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        return mean_by_component(context, answers, self.weigh), {}

    def weigh(self, update: ClientUpdate) -> float:
        return update.weight if self.weighting == "samples" else 1.0
