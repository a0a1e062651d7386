"""Kinds of model and data, one a file: load, encode, collate, loss, metrics.

It imports data, model and core.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hellora.core.errors import InputError
from hellora.core.exchange import Outputs
from hellora.core.metrics import UNLABELLED
from hellora.core.number_sums import NumberSums
from hellora.core.per_class import PerClass
from hellora.data.settings import ONE_CLASS, Columns
from hellora.model.normalise import position_limit
from hellora.model.resident import BaseModel
from hellora.model.sampling import GREEDY, Generation
from hellora.model.settings import Kind, ModelSettings
from hellora.tasks.common.encoded import Encoded as Encoded  # under which name all others know them
from hellora.tasks.common.encoded import Example as Example

Prediction = dict[str, Any]  # what a task says of an example, by name
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Answered:
    """A prompt was answered: that of which row, and what was to be said."""

    row: int
    prompt: str
    reference: str
    answer: str


class Task(ABC):
    """A task is a kind of problem. It has no state: the model, tokenizer and head are the BaseModel's."""

    columns: ClassVar[Columns]  # which columns of the data it reads
    pipeline: ClassVar[str] = "other"  # as the Hub names such tasks

    @property
    def max_tokens(self) -> int:
        """Return the most tokens of an example; 1 where examples are no texts."""
        return 1

    def number_sums(self, rows: Any) -> NumberSums | None:
        """Return the sums of training rows that `fitted` needs of everybody; None where it needs none."""
        return None

    def fitted(self, told: Sequence[NumberSums | None], labels: Sequence[str]) -> "Task":
        """Return the task with the settings that it finds out of the training data, once for all sides of a run; `told`
        are the sums of everybody who has some.

        Raises:
            InputError: they cannot be found, or do not fit the data.
        """
        return self

    @property
    def usage(self) -> str:
        """Return the Python of a model card, with {names} that `results/card_code.py` fills in; "" = there is none."""
        return ""

    @abstractmethod
    def kind(self) -> Kind:
        """Say which Hugging Face class loads the model."""

    @abstractmethod
    def load(self, settings: ModelSettings, labels: Sequence[str], seed: int, weights: bool = True) -> BaseModel:
        """Load the base model with its head and processor; without `weights`, its structure alone (meta device)."""

    @abstractmethod
    def encode(self, base: BaseModel, rows: Any) -> Encoded:
        """Encode the rows of a `datasets.Dataset` as examples."""

    def training_rows(self, base: BaseModel, encoded: Encoded, seed: int) -> Encoded:
        """Return the rows that steps are made of: the examples themselves, or several packed into each row."""
        return encoded

    def row_tokens(self, base: BaseModel, lengths: npt.NDArray[np.int64]) -> int:
        """Count the tokens of the longest row that steps are made of; `lengths` (examples,) are of all examples."""
        return max(1, int(lengths.max()))

    def before(self, base: BaseModel, encoded: Encoded, rows: Iterable[int]) -> None:
        """Look at some rows before an adapter is put on the base: a task may want to know what it says of them bare."""
        return

    @abstractmethod
    def collate(self, base: BaseModel, examples: Sequence[Example]) -> Batch:
        """Collate examples into one padded batch, on the CPU."""

    def blank_batch(self, base: BaseModel, examples: int, tokens: int) -> Batch:
        """Make a batch of this shape on the base's device, every example as long as it can be, with nothing in it.

        Raises:
            InputError: the task does not say what its batches are like, so their cost cannot be predicted.
        """
        raise InputError(
            f"task {type(self).__name__} has no blank_batch(), which budgets in bytes and seconds need: write it, or "
            f"remove these budgets"
        )

    def even_from(self, base: BaseModel, tokens: int) -> int:
        """Say from how many examples of so many tokens on each one more adds as many bytes to a step."""
        return 1

    def targets(self, rows: Any) -> Tensor | None:
        """Return what a linear head is to say of each row, (rows, labels or numbers); None where that is its class."""
        return None

    @abstractmethod
    def logits(self, base: BaseModel, batch: Batch) -> Tensor:
        """Run one forward pass: (rows, classes). A row is an example; of a language model, a supervised token."""

    @abstractmethod
    def score(self, logits: Tensor, batch: Batch) -> Outputs:
        """Say what logits (rows, classes) mean for each example."""

    def outputs(self, base: BaseModel, batch: Batch) -> Outputs:
        """Run one forward pass, and score it."""
        return self.score(self.logits(base, batch), batch)

    @property
    def own_loss(self) -> str:
        """Name the settings by which `learned` makes another loss of the task's; "" where it makes none."""
        return ""

    def learned(self, outputs: Outputs, labels: Tensor | None) -> Outputs:
        """Return what training minimises of a forward pass, where that is not the loss that evaluations report;
        `labels` (examples,) are the classes of all examples of the client that trains, None where there are none."""
        return outputs

    def references(self, batch: Batch) -> list[Any]:
        """Return what is right of each example of a batch on the CPU, in the form of `Outputs.predictions`."""
        found: list[Any] = batch["labels"].tolist()
        return found

    def distributions(self, logits: Tensor) -> Tensor:
        """Return the softmaxes that logits (rows, classes) are, as logits of their own (rows, …, classes): what can be
        distilled of them."""
        return logits

    def by_name(self, base: BaseModel, said: Sequence[Any]) -> Sequence[Any]:
        """Return predictions, or what is right, in the form that `metrics` compares: as they are, unless it needs the
        names of classes."""
        return said

    def metrics(self, loss: float, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """Return the metrics of a whole evaluation, of each example's prediction beside what is right (see
        `references` and `by_name`); `loss` is the mean loss."""
        return {"loss": loss}

    def per_class(self, predictions: Sequence[Any], references: Sequence[Any]) -> PerClass:
        """Count how each class is recognised, by its index or, where it has none, its name; nothing without classes.

        Of tasks whose examples have a class each there is nothing to write.
        """
        return PerClass.of(references, predictions) if self.columns in ONE_CLASS else PerClass()

    def kinds(self, labels: Sequence[str]) -> Sequence[str]:
        """Return the classes that `per_class` has by their names; () where it has them by their indices."""
        return ()

    def predictions(self, logits: Tensor, examples: Sequence[Example], names: Sequence[str]) -> list[Prediction]:
        """Say for a person what logits (rows, classes) in float32 mean of each example; `names` are the classes'."""
        probabilities = logits.double().softmax(-1)
        return [
            {"label": names[int(p.argmax())], "probabilities": dict(zip(names, p.tolist(), strict=True))}
            for p in probabilities
        ]

    @property
    def generation(self) -> Generation:
        """Say how `hellora predict` chooses tokens. Runs always take the likeliest one."""
        return GREEDY

    def answer(self, base: BaseModel, rows: Any, how: Generation = GREEDY) -> list[str]:
        """Return what the model answers to each row, for tasks of language; rows have the task's columns, or those of
        what is asked alone, and `how` says how tokens are chosen.

        Raises:
            InputError: the task does not say how to answer.
        """
        raise InputError(f"task {type(self).__name__} has no answer(), which predictions need: write it")

    def asks(self, round: int, rounds: int, evaluated: bool) -> bool:
        """Say whether prompts are answered after `round` of the `rounds`; `evaluated` says if the state is evaluated
        then."""
        return evaluated

    def answered(self, base: BaseModel, rows: Any) -> list[Answered]:
        """Answer the prompts of the first rows, for tasks that show answers as a run goes."""
        return []

    def answer_metrics(self, answers: Sequence[Answered]) -> dict[str, float]:
        """Return the metrics of answers; {} of none."""
        return {}


def classification_outputs(logits: Tensor, labels: Tensor) -> Outputs:
    """Return the cross-entropy and prediction of each example; logits (batch, classes), labels (batch,).

    An example that is UNLABELLED has a loss of 0.
    """
    losses = cross_entropy(logits.float(), labels, reduction="none", ignore_index=UNLABELLED)
    return Outputs(losses, torch.ones_like(losses), logits.argmax(-1), logits, labels)


def classification_metrics(loss: float, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
    """Return accuracy, macro and micro F1 (over the classes that occur), and mean loss."""
    from sklearn.metrics import accuracy_score, f1_score  # its import takes as long as a plan

    return {
        "accuracy": float(accuracy_score(references, predictions)),
        "macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0.0)),
        "micro_f1": float(f1_score(references, predictions, average="micro", zero_division=0.0)),
        "loss": loss,
    }


def length_limit(base: BaseModel, max_length: int) -> int:
    """Return `max_length`, or what the model's positions and its tokenizer allow if that is less, in tokens."""
    # A base without weights has no processor, and one of images is not a tokenizer.
    longest = getattr(base.processor, "model_max_length", None)
    known = [limit for limit in (position_limit(base.net), longest) if limit and limit > 0]
    return int(min(max_length, *known)) if known else max_length
