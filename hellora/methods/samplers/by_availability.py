"""Sampling by availability: who is more likely to be there is asked more often, so that fewer are asked in vain.

    clients are drawn one after another without replacement, client i with probability a_i / Σ a of those left

a_i is the availability of the client's profile. It wastes fewer requests than `uniform`, and it is biased: what rarely
available clients know counts less (Cho et al., arXiv 2010.01243, discuss such bias). With equal availabilities it has
the distribution of `uniform`.
"""

from dataclasses import dataclass

import numpy as np

from hellora.core.seeds import rng_for
from hellora.core.state import StrategyState
from hellora.core.types import ClientProfile
from hellora.methods.context import RoundContext
from hellora.methods.layer_sampling import sample_layers
from hellora.methods.strategies import Sampler


@dataclass(frozen=True)
class ByAvailability(Sampler):
    """Asks clients in proportion to the probability that they can be reached."""

    def sample(self, context: RoundContext) -> tuple[tuple[ClientProfile, ...], StrategyState]:
        able = context.able
        weights = np.maximum([client.availability for client in able], np.finfo(float).tiny)  # 0 comes last
        rng = rng_for(context.seed, "cohort by availability", context.round, context.attempt)
        # Drawing layers by weight and drawing clients by weight is one and the same.
        return tuple(able[i] for i in sample_layers(weights / weights.sum(), context.asked, rng)), {}
