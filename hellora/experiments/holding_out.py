"""Where clients have models of their own, each holds out a fifth of its examples to measure its model on.

Which ones depends on the experiment's seed, the client's id and the number of its examples alone, so that a client of a
network draws the same as a simulation does for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hellora.core.errors import InputError
from hellora.core.seeds import rng_for
from hellora.data.settings import DataSettings
from hellora.experiments.setup import Parts

HELD_OUT = 0.2  # of a client's examples

Rows = npt.NDArray[np.int64]


def hold_out(parts: Parts, data: DataSettings, seed: int) -> tuple[Parts, Parts]:
    """Cut every client's rows into (training, held out); a client with one row trains on it and holds out none.

    Where there is a validation split, one half of what is held out is for the test, the other for validation.
    """
    half = slice(1 if data.evaluate_on == "validation" else 0, None, 2) if data.validation else slice(None)
    train, held = [], []
    for client, part in enumerate(parts):
        rows, drawn = draw_held_out(part, seed, client)
        train.append(rows)
        held.append(np.sort(drawn[half]))
    if not any(map(len, held)):
        raise InputError(
            f"data.clients: {len(parts)} clients, with models of their own, have too few examples to hold out any to "
            f"evaluate them on: lower it"
        )
    return train, held


def draw_held_out(part: Rows, seed: int, client: int) -> tuple[Rows, Rows]:
    """Return a client's rows to train on, sorted, and those that it holds out, in the order in which they are drawn."""
    order = rng_for(seed, "held out", client).permutation(part)
    count = num_held_out(len(part))
    return np.sort(order[count:]), order[:count]


def num_held_out(examples: int) -> int:
    """Count the examples that a client of so many holds out."""
    return min(max(1, round(HELD_OUT * examples)), examples - 1)


@dataclass(frozen=True)
class TrainingRows(Sequence[Rows]):
    """Training rows are those that a client trains on, by the id that it will have; its data are there before that."""

    examples: int  # that the client has
    seed: int  # of the experiment

    def __len__(self) -> int:
        return 1

    def __getitem__(self, client: int) -> Rows:  # type: ignore[override]
        return draw_held_out(np.arange(self.examples), self.seed, client)[0]

    def held_out(self, client: int) -> Rows:
        """Return the rows that it holds out, sorted."""
        return np.sort(draw_held_out(np.arange(self.examples), self.seed, client)[1])
