"""A client tells how many examples of each class it has, by which the rows of a head can be weighed.

    w_c ← Σ_k n_kc w_kc / Σ_k n_kc       row c of the head; as it was where nobody has class c

So a row is the mean over those who have seen its class, and not over those who have only pushed it away. It comes along
with `method.head_mean = "by_class"`; see `contributions.head_by_class`.
"""

from dataclasses import dataclass
from typing import Any

import torch

from hellora.core.exchange import Declared, Named, TensorSpec
from hellora.methods.closed_form import linear_names
from hellora.methods.demands import CLASSES, Demands
from hellora.methods.local import Local, Shapes
from hellora.methods.strategies import LocalTraining

MOST = 2**40  # examples of a class


@dataclass(frozen=True)
class ClassCounts(LocalTraining):
    """Reports the number of the client's examples of each class."""

    @property
    def demands(self) -> Demands:
        return Demands(needs=frozenset({CLASSES}))

    def declares(self, shapes: Shapes) -> Declared:
        if not shapes.head:  # it stays frozen, and nobody asks
            return Declared()
        classes = shapes.head[linear_names(shapes.head)[0]][0]
        return Declared(report={"counts": TensorSpec((classes,), torch.int64, 0, MOST)})

    def end(self, local: Local, carry: Any) -> tuple[Named, Named]:
        if (labels := local.labels()) is None:
            raise ValueError("class_counts needs data with labels")
        report = self.declares(local.shapes).report
        return {n: torch.bincount(labels[labels >= 0], minlength=spec.shape[0]) for n, spec in report.items()}, {}
