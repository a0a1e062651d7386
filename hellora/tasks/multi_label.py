"""Say which of several labels a text or a pair of texts has: any number of them, each a question of its own, yes or no.

loss = mean over labels of BCE(σ(z_c), y_c)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, pad

from hellora.core.exchange import Outputs
from hellora.core.per_class import ClassCounts, PerClass
from hellora.data.settings import Columns
from hellora.tasks import Batch, Example, Prediction
from hellora.tasks.common.texts import HeadType, TextTask

ANSWERS = """\
with open({{folder}} + "/labels.json") as file:
    labels = json.load(file)
answers = [[label for label, p in zip(labels, row) if p >= {threshold}] for row in logits.sigmoid().tolist()]"""


@dataclass(frozen=True)
class MultiLabel(TextTask):
    """Says of every label whether a text has it: where its probability is `threshold` or more."""

    head_type: HeadType = "mean_pooling"
    max_length: int = 128  # tokens; longer texts are cut
    threshold: float = 0.5
    columns: ClassVar[Columns] = "text_labels"
    pipeline: ClassVar[str] = "text-classification"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be a probability between 0 and 1, not {self.threshold}")

    @property
    def answering(self) -> str:
        return ANSWERS.format(threshold=self.threshold)

    def targets(self, rows: Any) -> Tensor:
        return torch.tensor(rows["targets"][:])

    def labels_in(self, rows: Any) -> list[Any]:
        found: list[Any] = rows["targets"][:]
        return found

    def score(self, logits: Tensor, batch: Batch) -> Outputs:
        labels = batch["labels"].view(len(logits), -1)
        known = (labels >= 0).all(1)  # else UNLABELLED, with a loss of 0
        spare = logits.shape[1] - labels.shape[1]  # labels that the head has room for, and nothing has
        targets = pad(labels.clamp(min=0), (0, spare)).float()
        losses = binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").mean(1)
        losses = torch.where(known, losses, 0.0)
        return Outputs(losses, torch.ones_like(losses), logits.float().sigmoid(), logits)

    def metrics(self, loss: float, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return {**label_metrics(predictions, references, self.threshold), "loss": loss}

    def per_class(self, predictions: Sequence[Any], references: Sequence[Any]) -> PerClass:
        """Count how each label is recognised, each by itself."""
        right = np.array(references, dtype=bool)
        said = np.array(predictions)[:, : right.shape[1]] >= self.threshold
        counts = zip(right.sum(0).tolist(), said.sum(0).tolist(), (right & said).sum(0).tolist(), strict=True)
        return PerClass({label: ClassCounts(*own) for label, own in enumerate(counts) if any(own)})

    def predictions(self, logits: Tensor, examples: Sequence[Example], names: Sequence[str]) -> list[Prediction]:
        return [
            {
                "labels": [name for name, p in zip(names, row, strict=True) if p >= self.threshold],
                "probabilities": dict(zip(names, row, strict=True)),
            }
            for row in logits.double().sigmoid().tolist()
        ]

    def distributions(self, logits: Tensor) -> Tensor:
        return torch.stack([logits, torch.zeros_like(logits)], dim=-1)  # σ(z) is the first of softmax(z, 0)


def label_metrics(predictions: Sequence[Any], references: Sequence[Any], threshold: float) -> dict[str, float]:
    """Return micro and macro F1 over the labels that occur or are said, and the mean of the average precision of those
    that occur; 0 where there are none. Probabilities and what is right are both (rows, labels).
    """
    from sklearn.metrics import average_precision_score, f1_score  # its import takes as long as a plan

    right = np.array(references)
    scores = np.array(predictions)[:, : right.shape[1]]
    precisions = [average_precision_score(right[:, i], scores[:, i]) for i in np.flatnonzero(right.any(0))]
    wide = [np.pad(each, ((0, 0), (0, 1))) for each in (right, scores >= threshold)]  # one column would be classes
    some = np.flatnonzero(wide[0].any(0) | wide[1].any(0)).tolist()
    micro, macro = (
        float(f1_score(*wide, labels=some, average=average, zero_division=0.0)) if some else 0.0
        for average in ("micro", "macro")
    )
    return {"micro_f1": micro, "macro_f1": macro, "mean_average_precision": float(np.mean(precisions or [0.0]))}
