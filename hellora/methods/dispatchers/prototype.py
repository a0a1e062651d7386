"""HeLoRA-KD (Fan et al., ACM TOIT 25(2), 2025, doi 10.1145/3723877): a client receives its rank's prototype.

    A_k = A^(r),  B_k = B^(r)   for the global adapter θ^(r) of rank r = r_k, head and all

Where a client trains fewer components in some layer than its rank, it receives the first ones of that layer.
"""

from dataclasses import dataclass
from typing import ClassVar

from hellora.core.algebra import prototype_of, prototype_row
from hellora.core.types import Adapter, AdapterSpec, Mask
from hellora.methods.dispatchers.truncate import Truncate
from hellora.methods.protocols import Dispatcher


@dataclass(frozen=True)
class Prototype(Dispatcher):
    """The global adapter of the client's own rank; before that rank has one, the first components of the largest."""

    sends_prototypes: ClassVar[bool] = True

    def dispatch(self, adapter: Adapter, trained: Mask, spec: AdapterSpec) -> Adapter:
        row = prototype_row(trained)
        return Truncate().dispatch(prototype_of(adapter, row.shape[1], spec), row, spec)
