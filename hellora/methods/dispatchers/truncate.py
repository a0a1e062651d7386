"""HetLoRA (Cho et al., EMNLP 2024, arXiv 2401.06432): a client of rank r receives the first r rank components.

    A_k = A[:r_k, :],  B_k = B[:, :r_k]

More generally it receives the components that it trains, and no other. A layer in which it trains nothing still acts
whole.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from hellora.core.algebra import components
from hellora.core.types import Adapter, AdapterSpec, Mask
from hellora.methods.protocols import Dispatcher


@dataclass(frozen=True)
class Truncate(Dispatcher):
    """Only the rank components that the client trains go down; the others do not act at the client."""

    sends_untrained: ClassVar[bool] = False

    def dispatch(self, adapter: Adapter, trained: Mask, spec: AdapterSpec) -> Adapter:
        pairs = dict(adapter.pairs)
        for module in spec.modules:
            if (row := trained[module.layer]).any():
                pairs[module.name] = components(adapter.pairs[module.name], torch.tensor(row))
        return replace(adapter, pairs=pairs, prototypes={})
