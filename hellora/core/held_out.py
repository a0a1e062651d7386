"""A client that has a model of its own measures it on examples that it holds out, and tells sums.

accuracy = Σ right / Σ examples,  loss = Σ loss / Σ examples    over any set of clients

Of up to MOST classes it also tells how many examples are of each, are said to be, and are both.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from hellora.core.per_class import MOST, ClassCounts, Label, PerClass

EXAMPLES, RIGHT, LOSS = "held_out_examples", "held_out_right", "held_out_loss"  # among the metrics of an update
OF_CLASS = re.compile(r"held_out_class:(.+):(examples|said|right)", re.DOTALL)
LONGEST = 60  # characters of a class that is told by its name


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Holds what one client's model makes of its held-out examples."""

    examples: int  # of them
    loss: float  # the sum over them, of each the mean loss of the evaluation
    right: int | None = None  # how many have the right class; None where there are no classes
    classes: Mapping[str, ClassCounts] = field(default_factory=dict)  # by index or name, as a text; {} of many

    @staticmethod
    def of(metrics: Mapping[str, float]) -> "HeldOut | None":
        """Read them from an update's metrics; None where the client told none. Numbers that cannot be are for
        `problem` to say.
        """
        if not {EXAMPLES, RIGHT, LOSS} & metrics.keys():
            return None
        right = metrics.get(RIGHT)
        parts: dict[str, dict[str, int]] = {}
        for name, value in metrics.items():
            if found := OF_CLASS.fullmatch(name):
                parts.setdefault(found[1], {})[found[2]] = value  # type: ignore[assignment]
        classes = {label: ClassCounts(**counts) for label, counts in parts.items()}
        return HeldOut(metrics.get(EXAMPLES, 0), metrics.get(LOSS, math.nan), right, classes)  # type: ignore[arg-type]

    @staticmethod
    def classes_of(per_class: PerClass) -> dict[str, ClassCounts]:
        """Return what is told of classes: nothing where they are many, or one's name is long."""
        found = {str(label): counts for label, counts in per_class.counts.items()}
        return found if len(found) <= MOST and all(len(label) <= LONGEST for label in found) else {}

    def as_metrics(self) -> dict[str, float]:
        """Return what travels."""
        found: dict[str, float] = {EXAMPLES: self.examples, LOSS: self.loss}
        if self.right is not None:
            found[RIGHT] = self.right
        for label, counts in self.classes.items():
            found |= {f"held_out_class:{label}:{name}": n for name, n in asdict(counts).items()}
        return found

    def problem(self, num_examples: int) -> str | None:
        """Say why these numbers cannot be, or return None. `num_examples` is what the server knows the client to train
        on, 0 = not known; it holds out no more than that.
        """
        if type(self.examples) is not int or self.examples < 1:
            return f"measured its model on {self.examples!r} examples"
        if 0 < num_examples < self.examples:
            return f"measured its model on {self.examples} examples, but it trains on {num_examples}"
        if self.right is not None and (type(self.right) is not int or not 0 <= self.right <= self.examples):
            return f"has {self.right!r} of {self.examples} held-out examples right"
        if not math.isfinite(self.loss):
            return f"its loss on held-out examples is {self.loss}"
        return self.problem_with_classes()

    def problem_with_classes(self) -> str | None:
        """Say why the counts of classes cannot be, or return None."""
        for label, own in self.classes.items():
            numbers = (own.examples, own.said, own.right)
            if any(type(n) is not int for n in numbers) or not 0 <= own.right <= min(own.examples, own.said):
                return f"has {own.right!r} of {own.examples!r} held-out examples of class {label} right"
        if self.classes and self.right is not None:  # each example is of one class, and is said to be of one
            sums = ClassCounts()
            for own in self.classes.values():
                sums += own
            if sums != ClassCounts(self.examples, self.examples, self.right):
                return f"counts {sums.examples} held-out examples by class, of {self.examples}"
        return None

    def per_class(self, known: Mapping[str, Label]) -> PerClass:
        """Return how well each class is recognised, of those that are `known`, by how they are told."""
        return PerClass({known[label]: own for label, own in self.classes.items() if label in known})

    @property
    def means(self) -> dict[str, float]:
        """Return the metrics of an evaluation."""
        accuracy = {} if self.right is None else {"accuracy": self.right / self.examples}
        return {**accuracy, "loss": self.loss / self.examples}
