"""FedRA (Su et al., ECCV 2024, arXiv 2311.11227): a client's model has only the blocks that it trains.

    h ← block_j(h) for j in S_i;  h ← h for every other block

The other blocks are left out of its forward and backward pass, and their pairs do not travel. With `random_layers` and
`participant_mean` (weighting "uniform") this is the original FedRA.
"""

from dataclasses import dataclass, replace

import numpy as np

from hellora.core.types import Adapter, AdapterSpec, Mask, Sent
from hellora.methods.context import RoundContext
from hellora.methods.strategies import Dispatcher


@dataclass(frozen=True)
class Bypass(Dispatcher):
    """Sends whole only the layers that the client trains; the client skips the other blocks."""

    def sends(self, trained: Mask, spec: AdapterSpec) -> Sent:
        return Sent(np.where(trained.any(axis=1), spec.max_rank, 0), bypass=True)

    def dispatch(self, context: RoundContext, adapter: Adapter, trained: Mask) -> Adapter:
        there = {module.name for module in context.spec.modules if trained[module.layer].any()}
        pairs = {name: pair for name, pair in adapter.pairs.items() if name in there}
        residual = {name: pair for name, pair in adapter.residual.items() if name in there}
        return replace(adapter, pairs=pairs, residual=residual, prototypes={})
