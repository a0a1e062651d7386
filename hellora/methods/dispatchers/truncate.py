"""HetLoRA (Cho et al., EMNLP 2024, arXiv 2401.06432): a client of rank r receives the first r rank components.

    A_k = A[:r_k, :],  B_k = B[:, :r_k]

More generally it receives the components that it trains, and no other. A layer in which it trains nothing still acts
whole.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from hellora.core.algebra import components
from hellora.core.types import Adapter, AdapterSpec, Mask, Sent
from hellora.methods.context import RoundContext
from hellora.methods.demands import ONLY_TRAINED, Demands
from hellora.methods.strategies import Dispatcher


@dataclass(frozen=True)
class Truncate(Dispatcher):
    """Sends only the rank components that the client trains; the others do not act at the client."""

    @property
    def demands(self) -> Demands:
        return super().demands.also(promises={ONLY_TRAINED})

    def sends(self, trained: Mask, spec: AdapterSpec) -> Sent:
        ranks = trained.sum(axis=1)
        return Sent(np.where(ranks > 0, ranks, spec.max_rank), cut=True)

    def dispatch(self, context: RoundContext, adapter: Adapter, trained: Mask) -> Adapter:
        pairs = dict(adapter.pairs)
        for module in context.spec.modules:
            if (row := trained[module.layer]).any():
                pairs[module.name] = components(adapter.pairs[module.name], torch.tensor(row))
        return replace(adapter, pairs=pairs, prototypes={})
