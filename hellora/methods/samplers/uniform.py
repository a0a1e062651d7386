"""McMahan et al. (arXiv 1602.05629): a round asks clients drawn uniformly without replacement.

    cohort ~ uniform over the sets of `asked` of the clients that can train something

Repeated attempts at a round draw anew.
"""

from dataclasses import dataclass

import numpy as np

from hellora.core.seeds import rng_for
from hellora.core.state import StrategyState
from hellora.core.types import ClientProfile
from hellora.methods.context import RoundContext
from hellora.methods.strategies import Sampler


@dataclass(frozen=True)
class Uniform(Sampler):
    """Asks every client that can train anything with the same probability."""

    def sample(self, context: RoundContext) -> tuple[tuple[ClientProfile, ...], StrategyState]:
        able = context.able
        draws = rng_for(context.seed, "cohort", context.round, context.attempt).random(len(able))
        order = np.argsort(draws, kind="stable")
        return tuple(able[i] for i in sorted(order[: context.asked])), {}
