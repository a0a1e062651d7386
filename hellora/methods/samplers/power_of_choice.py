"""Power-of-choice (Cho et al., arXiv 2010.01243): of some candidates those with the largest loss are asked.

    candidates ~ d clients, drawn one after another without replacement, the next is k with probability n_k / Σ n
    cohort     = the `asked` candidates with the largest F̂_k                               (Σ over those that are left)

This is the variant rpow-d: F̂_k is the mean loss that client k reported when it last trained, and ∞ as long as it has
not, so that everybody is tried first and nobody is asked for a loss alone. (In pow-d and cpow-d all d candidates first
evaluate the model, on all or some of their data.) Of equal losses, which those yet unknown are, the candidate drawn
first is asked. A client's n_k counts no more than it would in an average (guard.max_weight).

It needs each client's loss in the clear, and is biased on purpose: the more candidates, the more so.
"""

import math
from dataclasses import dataclass

import numpy as np

from hellora.core.errors import InputError
from hellora.core.seeds import rng_for
from hellora.core.state import StrategyState
from hellora.core.types import ClientProfile
from hellora.methods.context import RoundContext
from hellora.methods.demands import LOSS_REPORTED, Demands
from hellora.methods.layer_sampling import race
from hellora.methods.strategies import Sampler


@dataclass(frozen=True)
class PowerOfChoice(Sampler):
    """Draws candidates by their data, and asks those that had the largest loss when they last trained."""

    candidates: int = 20  # d, of all clients that can train; as many as a round asks: no choice

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"candidates must be at least 1, not {self.candidates}")

    @property
    def demands(self) -> Demands:
        return Demands(needs=frozenset({LOSS_REPORTED}), brings=("local_loss",))

    def sample(self, context: RoundContext) -> tuple[tuple[ClientProfile, ...], StrategyState]:
        able = context.able
        if self.candidates < min(context.asked, len(able)):
            raise InputError(
                f"method.candidates = {self.candidates} is less than the {context.asked} clients that a round asks: "
                f"raise it, for of more candidates those with the largest loss are asked"
            )
        losses = dict(context.state)
        losses |= {str(client): loss.clone() for client, loss in context.reported("local_loss/loss").items()}
        weights = context.weights(client.id for client in able)
        sizes = np.array([max(weights[client.id], np.finfo(float).tiny) for client in able])  # 0 is not known
        rng = rng_for(context.seed, "power of choice", context.round, context.attempt)
        drawn = race(sizes / sizes.sum(), rng)[: self.candidates]  # first come first
        known = [float(losses.get(str(able[i].id), math.inf)) for i in drawn]
        chosen = np.argsort(-np.array(known), kind="stable")[: context.asked]
        return tuple(able[i] for i in sorted(drawn[chosen])), losses
