"""Say a number of a text or a pair of texts, or several, such as how much alike two sentences are.

    z = (y − mean) / deviation      loss = mean over the numbers of (ẑ − z)²

Mean and deviation are those of everybody's training data, which sums tell. Predictions and metrics are in their unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hellora.core.errors import InputError
from hellora.core.exchange import Outputs
from hellora.core.number_sums import NumberSums
from hellora.data.settings import Columns
from hellora.tasks import Batch, Example, Prediction
from hellora.tasks.common.texts import HeadType, TextTask

Numbers = npt.NDArray[np.float64]
ANSWERS = """\
with open({{folder}} + "/labels.json") as file:
    names = json.load(file)
mean, deviation = torch.tensor({mean}), torch.tensor({deviation})  # of what it was trained on
answers = [dict(zip(names, numbers)) for numbers in (logits * deviation + mean).tolist()]"""


@dataclass(frozen=True)
class Regression(TextTask):
    """Says numbers of texts; those that it learns from are standardised by `mean` and `deviation`, of each."""

    head_type: HeadType = "mean_pooling"
    max_length: int = 128  # tokens; longer texts are cut
    mean: tuple[float, ...] = ()  # of each number; () = that of the training data, of which clients tell sums
    deviation: tuple[float, ...] = ()  # likewise, its standard deviation
    numbers: tuple[str, ...] = ()  # their names; () = those of the data
    columns: ClassVar[Columns] = "text_numbers"
    pipeline: ClassVar[str] = "text-classification"  # the Hub has no other name for it

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mean) != len(self.deviation):
            raise ValueError("mean and deviation are of the same numbers: give as many of both")
        if not all(deviation > 0 for deviation in self.deviation):
            raise ValueError(f"deviation must be greater than 0, not {list(self.deviation)}")

    @property
    def answering(self) -> str:
        return ANSWERS.format(mean=list(self.mean), deviation=list(self.deviation))

    def number_sums(self, rows: Any) -> NumberSums | None:
        return None if self.mean else NumberSums.of(np.array(rows["targets"][:]))

    def fitted(self, told: Sequence[NumberSums | None], labels: Sequence[str]) -> "Regression":
        names = tuple(labels)
        if self.mean and len(self.mean) != len(names):
            raise InputError(f"task.mean has {len(self.mean)} numbers, and the data {len(names)}: give one each")
        if self.mean:
            return replace(self, numbers=names)
        known = [sums for sums in told if sums is not None]
        if len(known) < len(told) or any(len(sums.sums) != len(names) for sums in known):
            raise InputError(
                f"data.labels: not everybody's data tell sums of the same {len(names)} numbers: name the same columns, "
                f"or set task.mean and task.deviation"
            )
        found = NumberSums.together(known)
        if alike := [name for name, spread in zip(names, found.deviation, strict=True) if not spread]:
            raise InputError(
                f"data.label: all training examples have the same '{alike[0]}', but for a millionth of its size at "
                f"most: name another column, or take from each number what they have in common"
            )
        return replace(self, mean=found.mean, deviation=found.deviation, numbers=names)

    def targets(self, rows: Any) -> Tensor:
        numbers = torch.tensor(rows["targets"][:], dtype=torch.float64)
        return (numbers - numbers.new_tensor(self.mean or 0.0)) / numbers.new_tensor(self.deviation or 1.0)

    def labels_in(self, rows: Any) -> list[Any]:
        found: list[Any] = self.targets(rows).tolist()
        return found

    def in_unit(self, standard: Tensor) -> Tensor:
        """Return numbers (rows, numbers) in the unit of the data, of standardised ones."""
        return standard * standard.new_tensor(self.deviation or 1.0) + standard.new_tensor(self.mean or 0.0)

    def score(self, logits: Tensor, batch: Batch) -> Outputs:
        labels = batch["labels"].view(len(logits), -1)
        squares = (logits.float() - labels.nan_to_num()).square() * ~labels.isnan()  # nan is UNKNOWN, with a loss of 0
        losses = squares.mean(1)
        return Outputs(losses, torch.ones_like(losses), self.in_unit(logits.float()), logits)

    def references(self, batch: Batch) -> list[Any]:
        found: list[Any] = self.in_unit(batch["labels"].double()).tolist()
        return found

    def metrics(self, loss: float, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        said, right = np.array(predictions, dtype=np.float64), np.array(references, dtype=np.float64)
        each = [of_number(said[:, i], right[:, i]) for i in range(right.shape[1])]
        means = {name: float(np.mean([found[name] for found in each])) for name in each[0]}
        names = self.numbers if len(each) > 1 else ()
        of_each = {f"{key}_{name}": found[key] for name, found in zip(names, each, strict=False) for key in found}
        return {**means, "loss": loss, **of_each}

    def predictions(self, logits: Tensor, examples: Sequence[Example], names: Sequence[str]) -> list[Prediction]:
        return [dict(zip(names, numbers, strict=True)) for numbers in self.in_unit(logits.double()).tolist()]


def of_number(said: Numbers, right: Numbers) -> dict[str, float]:
    """Return the correlations (Pearson's, Spearman's) of predictions (rows,) with what is right, 0 where either is
    constant, and the root of their mean squared error."""
    from scipy.stats import pearsonr, spearmanr  # its import takes as long as a plan

    constant = len(right) < 2 or not np.ptp(said) or not np.ptp(right)
    return {
        "pearson": 0.0 if constant else float(pearsonr(said, right).statistic),
        "spearman": 0.0 if constant else float(spearmanr(said, right).statistic),
        "rmse": float(np.sqrt(np.mean((said - right) ** 2))),
    }
