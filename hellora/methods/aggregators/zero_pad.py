"""Zero padding, the baseline that papers on unequal ranks start from (and often call HetLoRA).

    X_q = Σ_k n_k X_kq / Σ_k n_k   with X_kq = 0 where client k has no component q,  X = A, B

over all clients k that trained the module. It dilutes: a component that few clients have shrinks towards zero in every
round, in A and in B. The mean of one factor is exact where the other is the same for all (FFA-LoRA, RoLoRA).
"""

from dataclasses import dataclass
from typing import ClassVar

from hellora.core.types import Adapter, AdapterSpec
from hellora.methods.aggregators.context_pad import ContextPad
from hellora.methods.protocols import Aggregator, Answers


@dataclass(frozen=True)
class ZeroPad(Aggregator):
    """Every client counts in every rank component, with zeros where it has none; what few train is diluted."""

    pads: ClassVar[bool] = True

    def aggregate(self, adapter: Adapter, answers: Answers, spec: AdapterSpec, seed: int) -> Adapter:
        return ContextPad("zero", kappa=0.0, gamma=1.0).aggregate(adapter, answers, spec, seed)
