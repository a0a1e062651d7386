"""A client that has a model of its own measures it on examples that it holds out, and tells sums.

accuracy = Σ right / Σ examples,  loss = Σ loss / Σ examples    over any set of clients
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

EXAMPLES, RIGHT, LOSS = "held_out_examples", "held_out_right", "held_out_loss"  # among the metrics of an update


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Holds what one client's model makes of its held-out examples."""

    examples: int  # of them
    loss: float  # the sum over them, of each the mean loss of the evaluation
    right: int | None = None  # how many have the right class; None where there are no classes

    @staticmethod
    def of(metrics: Mapping[str, float]) -> "HeldOut | None":
        """Read them from an update's metrics; None where the client told none. Numbers that cannot be are for
        `problem` to say.
        """
        if not {EXAMPLES, RIGHT, LOSS} & metrics.keys():
            return None
        right = metrics.get(RIGHT)
        return HeldOut(metrics.get(EXAMPLES, 0), metrics.get(LOSS, math.nan), right)  # type: ignore[arg-type]

    def as_metrics(self) -> dict[str, float]:
        """Return what travels."""
        found: dict[str, float] = {EXAMPLES: self.examples, LOSS: self.loss}
        return found if self.right is None else {**found, RIGHT: self.right}

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
        return None if math.isfinite(self.loss) else f"its loss on held-out examples is {self.loss}"

    @property
    def means(self) -> dict[str, float]:
        """Return the metrics of an evaluation."""
        accuracy = {} if self.right is None else {"accuracy": self.right / self.examples}
        return {**accuracy, "loss": self.loss / self.examples}
