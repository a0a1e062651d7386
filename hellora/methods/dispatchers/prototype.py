"""HeLoRA-KD (Fan et al., ACM TOIT 25(2), 2025, doi 10.1145/3723877): a client receives its rank's prototype.

    A_k = A^(r),  B_k = B^(r)   for the global adapter θ^(r) of rank r = r_k, head and all

Where a client trains fewer components in some layer than its rank, it receives the first ones of that layer.
"""

from dataclasses import dataclass

import numpy as np

from hellora.core.algebra import prototype_of, prototype_row
from hellora.core.types import Adapter, AdapterSpec, Mask, Sent
from hellora.methods.context import RoundContext
from hellora.methods.demands import ONLY_TRAINED, PROTOTYPES_KEPT, PROTOTYPES_SENT, Demands
from hellora.methods.dispatchers.truncate import Truncate
from hellora.methods.strategies import Dispatcher


@dataclass(frozen=True)
class Prototype(Dispatcher):
    """Sends the global adapter of the client's rank; until that rank has one, the first components of the largest."""

    @property
    def demands(self) -> Demands:
        return super().demands.also(needs={PROTOTYPES_KEPT}, promises={ONLY_TRAINED, PROTOTYPES_SENT})

    def sends(self, trained: Mask, spec: AdapterSpec) -> Sent:
        ranks = trained.sum(axis=1)
        return Sent(np.where(ranks > 0, ranks, ranks.max()), cut=True)

    def dispatch(self, context: RoundContext, adapter: Adapter, trained: Mask) -> Adapter:
        row = prototype_row(trained)
        return Truncate().dispatch(context, prototype_of(adapter, row.shape[1], context.spec), row)
