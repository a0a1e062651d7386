"""Fed-HeLLo (Zhang et al., arXiv 2506.12213, section on the round): every client receives every layer."""

from dataclasses import dataclass

from hellora.core.types import Adapter, AdapterSpec, Mask
from hellora.methods.protocols import Dispatcher


@dataclass(frozen=True)
class Whole(Dispatcher):
    """The full adapter goes down; what a client does not train still acts, frozen."""

    def dispatch(self, adapter: Adapter, trained: Mask, spec: AdapterSpec) -> Adapter:
        return adapter
