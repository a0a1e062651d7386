"""FedRA (Su et al., ECCV 2024, arXiv 2311.11227): a client's model has only the blocks that it trains.

    h ← block_j(h) for j in S_i;  h ← h for every other block

The other blocks are left out of its forward and backward pass, and their pairs do not travel. With `random_layers` and
`participant_mean` (weighting "uniform") this is the original FedRA.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from hellora.core.types import Adapter, AdapterSpec, Mask
from hellora.methods.protocols import Dispatcher


@dataclass(frozen=True)
class Bypass(Dispatcher):
    """Only the layers that the client trains go down, whole; it skips the other blocks."""

    bypasses: ClassVar[bool] = True

    def dispatch(self, adapter: Adapter, trained: Mask, spec: AdapterSpec) -> Adapter:
        there = {module.name for module in spec.modules if trained[module.layer].any()}
        pairs = {name: pair for name, pair in adapter.pairs.items() if name in there}
        residual = {name: pair for name, pair in adapter.residual.items() if name in there}
        return replace(adapter, pairs=pairs, residual=residual, prototypes={})
