"""Zero padding is the baseline that papers on unequal ranks start from (and often call HetLoRA).

    X_q = Σ_k n_k X_kq / Σ_k n_k   with X_kq = 0 where client k has no component q,  X = A, B

over all clients k that trained the module. It dilutes: a component that few clients have shrinks towards zero in every
round, in A and in B. The mean of one factor is exact where the other is the same for all (FFA-LoRA, RoLoRA).
"""

from dataclasses import dataclass

from hellora.core.state import StrategyState
from hellora.core.types import Adapter
from hellora.methods.aggregators.context_pad import ContextPad
from hellora.methods.context import RoundContext
from hellora.methods.demands import AVERAGES_COMPONENTS, MEAN_OF_EQUALS, ONLY_TRAINED, RETURNS_THE_ONLY_ONE, Demands
from hellora.methods.strategies import Aggregator, Answers


@dataclass(frozen=True)
class ZeroPad(Aggregator):
    """Counts every client in every rank component, with zeros where it has none; what few train is diluted."""

    @property
    def demands(self) -> Demands:
        return AVERAGES_COMPONENTS.also(needs={ONLY_TRAINED}, promises={MEAN_OF_EQUALS, RETURNS_THE_ONLY_ONE})

    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        return ContextPad("zero", kappa=0.0, gamma=1.0).aggregate(context, answers)
