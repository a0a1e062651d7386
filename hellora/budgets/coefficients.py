"""Coefficients of what a step holds, bilinear in examples and rank: `cost.py` says what each is of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from hellora.core.exchange import Policy, Recompute

Part = Literal["off", "first", "frozen", "trained"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BlockCoefficients:
    """These coefficients, (4, layers), give the bytes that blocks hold in one part of a row."""

    keep: Floats
    forward: Floats
    release: Floats
    backward: Floats


@dataclass(frozen=True, eq=False)
class StepCoefficients:
    """These coefficients tell what a step holds under one way of keeping activations; all but blocks' are (4,)."""

    blocks: Mapping[Part, BlockCoefficients]
    start: Floats
    enter: Floats
    head: Floats
    end: Floats
    head_backward: Floats
    refused: str = ""  # why the model cannot be trained so; the coefficients are then those of plain training


@dataclass(frozen=True, slots=True)
class ActivationPolicy:
    """This part of a policy decides what is kept of an activation."""

    recompute: Recompute = "none"
    int8_activations: bool = False
    bf16: bool = False

    @staticmethod
    def of(policy: Policy) -> "ActivationPolicy":
        return ActivationPolicy(policy.recompute, policy.int8_activations, policy.bf16)
