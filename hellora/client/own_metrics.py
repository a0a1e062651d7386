"""More metrics of an evaluation than its task has: some by name, as scikit-learn computes them, and a user's functions.

A function is called with the predictions and the references of all examples, and with their `probabilities`
(examples, classes) where it has a parameter of that name. It returns a number, or several by their names.
"""

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from hellora.core.errors import InputError, one_line

Probabilities = npt.NDArray[np.float32]  # (examples, classes)
PROBABILITIES = "probabilities"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """A metric is a function with the name by which settings call it: "matthews", "mine.py:bias"."""

    setting: str
    function: Callable[..., Any]

    @property
    def name(self) -> str:
        """Return the name of its values: "bias" of "mine.py:bias"."""
        return self.setting.rpartition(":")[2]

    @property
    def takes_probabilities(self) -> bool:
        """Say whether the function has a parameter for them; what is not written in Python does not tell its own."""
        try:
            return PROBABILITIES in inspect.signature(self.function).parameters
        except ValueError:
            return False

    def of(
        self, predictions: Sequence[Any], references: Sequence[Any], probabilities: Probabilities | None
    ) -> dict[str, float]:
        """Return its values by name; one that is nan or infinite is left out, and that is logged.

        Raises:
            InputError: the function raises, or returns something else than a number or numbers by name.
        """
        more = {PROBABILITIES: probabilities} if self.takes_probabilities else {}
        try:
            found = self.function(as_array(predictions), as_array(references), **more)
        except Exception as error:  # whatever a user's function raises
            raise self.wrong(f"raised {type(error).__name__}: {one_line(error)}") from error
        named = {f"{self.name}.{key}": value for key, value in found.items()} if isinstance(found, Mapping) else None
        values = {self.name: found} if named is None else named
        if not all(isinstance(value, Real) for value in values.values()):
            raise self.wrong(f"returned {found!r:.80}, not a number or a dictionary of numbers")
        for name, value in values.items():
            if not math.isfinite(value):
                log.warning("task.metrics: %s of %r is %s here, and is left out", name, self.setting, value)
        return {name: float(value) for name, value in values.items() if math.isfinite(value)}

    def wrong(self, what: str) -> InputError:
        """Return the error that says what its function did."""
        return InputError(f"task.metrics: {self.setting!r} {what}: correct it")


def as_array(values: Sequence[Any]) -> Any:
    """Return numbers as an array, (examples,); what is no number of each example stays a list."""
    return np.asarray(values) if all(isinstance(value, Real) for value in values) else list(values)


def more_metrics(
    metrics: Sequence[Metric],
    predictions: Sequence[Any],
    references: Sequence[Any],
    probabilities: Probabilities | None,
) -> dict[str, float]:
    """Return the values of all metrics, by name; {} where nothing was predicted."""
    found: dict[str, float] = {}
    for metric in metrics if references else ():
        found |= metric.of(predictions, references, probabilities)
    return found


# ----------------------------------------------------------------------------------------------- those that have a name


def matthews(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Return Matthews' correlation coefficient, also of more than two classes; 0 where all are of one class."""
    from sklearn.metrics import matthews_corrcoef

    if len(np.union1d(references, predictions)) < 2:  # of which scikit-learn warns
        return 0.0
    return float(matthews_corrcoef(references, predictions))


def balanced_accuracy(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Return the mean recall of the classes that occur."""
    from sklearn.metrics import recall_score

    classes = np.unique(references)
    return float(recall_score(references, predictions, labels=classes, average="macro", zero_division=0.0))


def auroc(_: Sequence[int], references: Sequence[int], probabilities: Probabilities) -> float:
    """Return the area under the ROC curve of each class against all others, as their mean over the classes that occur;
    nan where only one does."""
    from sklearn.metrics import roc_auc_score

    true = np.asarray(references)
    classes = np.unique(true)
    if len(classes) < 2:
        return math.nan
    return float(np.mean([roc_auc_score(true == c, probabilities[:, c]) for c in classes]))


BUILT_IN: Mapping[str, Callable[..., float]] = {
    "matthews": matthews,
    "balanced_accuracy": balanced_accuracy,
    "auroc": auroc,
}
