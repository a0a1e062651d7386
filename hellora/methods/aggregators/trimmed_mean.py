"""Yin et al. (arXiv 1803.01498), Definition 2: take the coordinate-wise trimmed mean of answers, unweighted.

    θ_c ← mean of {θ_ic : i ∈ C_c} less its ⌊β n_c⌋ smallest and its ⌊β n_c⌋ largest,   n_c = |C_c|

C_c are the clients that trained the rank component of c; unchanged if there are none. With so few that nothing is
trimmed it is their plain mean. As long as at most ⌊β n_c⌋ of them are dishonest, it stays within what the others sent.
A and B are taken by themselves, the head over all answers; values and not deltas, as in `coordinate_median`.
"""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from hellora.core.state import StrategyState
from hellora.core.types import Adapter
from hellora.methods.context import RoundContext
from hellora.methods.contributions import coordinate_wise
from hellora.methods.demands import AGGREGATES_HEAD, AVERAGES_COMPONENTS, RETURNS_THE_ONLY_ONE, Demands
from hellora.methods.strategies import Aggregator, Answers


@dataclass(frozen=True)
class TrimmedMean(Aggregator):
    """Averages, number by number, over a component's clients, without the largest and the smallest values.

    `trim` (β) of them are left out on each side, rounded down; clients count alike. It fails where more than `trim` of
    a component's clients are dishonest, and protects nothing where fewer than 1 / `trim` trained it.
    """

    trim: float = 0.2  # β

    def __post_init__(self) -> None:
        if not 0 <= self.trim < 0.5:
            raise ValueError(f"trim must be in [0, 0.5), not {self.trim}: it is left out on each side")

    @property
    def demands(self) -> Demands:
        return replace(AVERAGES_COMPONENTS.also(promises={RETURNS_THE_ONLY_ONE}), takes=frozenset({AGGREGATES_HEAD}))

    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        return coordinate_wise(context, answers, self.mean), {}

    def mean(self, values: Tensor) -> Tensor:
        """Average over the first dimension, less the ends."""
        cut = math.floor(round(self.trim * len(values), 9))  # 0.29 × 100 is 29, not 28.999999999999996
        return values.sort(dim=0).values[cut : len(values) - cut].mean(dim=0)
