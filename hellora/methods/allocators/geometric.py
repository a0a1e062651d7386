"""GD-HLA of Fed-HeLLo (Zhang et al., arXiv 2506.12213): which layers a client trains follows from its capacity c alone.

    triangle           {0, …, c − 1}                                    shallow first
    inverted_triangle  {L − c, …, L − 1}                                deep first
    bottleneck         {0, …, ⌈c/2⌉ − 1} and {L − ⌊c/2⌋, …, L − 1}      both ends first
    uniform            {⌊kL/c⌋ : k = 0 … c − 1}                         evenly spread

The formulas for any L and c are ours; for L = 12 and c = 6, 9, 12 they give the published sets.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from hellora.core.state import StrategyState
from hellora.core.types import Allocation
from hellora.methods.context import RoundContext
from hellora.methods.strategies import Allocator

Pattern = Literal["triangle", "inverted_triangle", "bottleneck", "uniform"]


def pattern_layers(pattern: Pattern, capacity: int, num_layers: int) -> npt.NDArray[np.int64]:
    """Return the `capacity` layers that a pattern selects of `num_layers`, ascending."""
    match pattern:
        case "triangle":
            shallow = capacity
        case "inverted_triangle":
            shallow = 0
        case "bottleneck":
            shallow = (capacity + 1) // 2
        case "uniform":
            return np.arange(capacity) * num_layers // max(capacity, 1)
    return np.concatenate([np.arange(shallow), np.arange(num_layers - capacity + shallow, num_layers)])


@dataclass(frozen=True)
class Geometric(Allocator):
    """Trains a fixed pattern of layers for each capacity."""

    pattern: Pattern = "bottleneck"  # the shape over the model's depth by which layers are taken

    def __post_init__(self) -> None:
        if self.pattern not in get_args(Pattern):
            raise ValueError(f"pattern must be one of {', '.join(get_args(Pattern))}, not {self.pattern!r}")

    def allocate(self, context: RoundContext) -> tuple[Allocation, StrategyState]:
        return context.largest_allocation(lambda _, c: pattern_layers(self.pattern, c, context.spec.num_layers)), {}
