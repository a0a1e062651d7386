"""Yin et al. (arXiv 1803.01498), Definition 1: take the coordinate-wise median of what clients returned, unweighted.

    θ_c ← median {θ_ic : i ∈ C_c}   where C_c = {i : client i trained the rank component of c};  unchanged if C_c = ∅

Of an even number of values it is the mean of the middle two. Fewer than half of the clients that trained a component,
whatever they send, cannot move it beyond what the others sent. A and B are taken by themselves, the head over all
answers. Values and not deltas: the two are the same where all received the same, and values are also defined where
clients received unequal adapters.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from hellora.core.state import StrategyState
from hellora.core.types import Adapter
from hellora.methods.context import RoundContext
from hellora.methods.contributions import coordinate_wise
from hellora.methods.demands import AGGREGATES_HEAD, AVERAGES_COMPONENTS, RETURNS_THE_ONLY_ONE, Demands
from hellora.methods.strategies import Aggregator, Answers


@dataclass(frozen=True)
class CoordinateMedian(Aggregator):
    """Takes the median, number by number, over a component's clients; fewer than half may be dishonest.

    Clients count alike, however many examples they have. It fails where most clients of a component move it in
    directions of their own: the median of unequal clients is not their mean.
    """

    @property
    def demands(self) -> Demands:
        return replace(AVERAGES_COMPONENTS.also(promises={RETURNS_THE_ONLY_ONE}), takes=frozenset({AGGREGATES_HEAD}))

    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        return coordinate_wise(context, answers, median), {}


def median(values: Tensor) -> Tensor:
    """Return the median over the first dimension; of an even count the mean of the middle two."""
    ordered, last = values.sort(dim=0).values, len(values) - 1
    return (ordered[last // 2] + ordered[(last + 1) // 2]) / 2
