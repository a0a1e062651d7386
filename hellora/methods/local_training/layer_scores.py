"""Client-side FIM-HLA (Fed-HeLLo, Zhang et al., arXiv 2506.12213): clients score the layers that they train.

    Γ_ij = mean over the steps of client i of ‖∇_{θ_j} loss‖²   where it trains layer j;  nan elsewhere

The gradients are those of batches, so that scores do not compare with those on proxy data, but do among layers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hellora.core.exchange import Declared, Named, TensorSpec
from hellora.methods.demands import LAYER_SCORES_REPORTED, Demands
from hellora.methods.local import Local, Shapes, add_squared_norms
from hellora.methods.strategies import LocalTraining


@dataclass(frozen=True)
class LayerScores(LocalTraining):
    """Reports `scores` (layers,), the mean squared gradient norm of each layer that was trained."""

    @property
    def demands(self) -> Demands:
        return Demands(promises=frozenset({LAYER_SCORES_REPORTED}))

    def declares(self, shapes: Shapes) -> Declared:
        scores = TensorSpec((shapes.spec.num_layers,), torch.float64, low=0.0, may_be_nan=True)
        return Declared(report={"scores": scores})

    def begin(self, local: Local) -> Any:
        return np.zeros(local.spec.num_layers)

    def gradients(self, local: Local, carry: Any) -> Any:
        pairs = {name: (pair.A, pair.B) for name, pair in local.pairs.items()}
        return add_squared_norms(carry, pairs, local.spec)

    def end(self, local: Local, carry: Any) -> tuple[Named, Named]:
        scores = np.where(local.trained.any(axis=1), carry / local.steps, np.nan)
        return {"scores": torch.from_numpy(scores)}, {}
