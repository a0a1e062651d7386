"""Fed-HeLLo (Zhang et al., arXiv 2506.12213, section on the round): every client receives every layer."""

from dataclasses import dataclass, replace

import numpy as np

from hellora.core.types import Adapter, AdapterSpec, Mask, Sent
from hellora.methods.context import RoundContext
from hellora.methods.strategies import Dispatcher


@dataclass(frozen=True)
class Whole(Dispatcher):
    """Sends the full adapter; what a client does not train still acts, frozen."""

    def sends(self, trained: Mask, spec: AdapterSpec) -> Sent:
        return Sent(np.full(spec.num_layers, spec.max_rank))

    def dispatch(self, context: RoundContext, adapter: Adapter, trained: Mask) -> Adapter:
        return replace(adapter, prototypes={}) if adapter.prototypes else adapter
