"""Choose the examples that make a step."""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from hellora.core.exchange import TrainSettings
from hellora.core.seeds import rng_for
from hellora.tasks import Encoded

WINDOW = 16  # batches that are sorted by length together


def training_batches(encoded: Encoded, settings: TrainSettings, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the indices of each step's batch: `steps` of them, or `epochs` passes over the data."""
    done = epoch = 0
    while settings.steps is not None or epoch < settings.epochs:
        drawn = 0 if settings.same_batches else epoch
        batches = shuffled_batches(encoded.lengths, len(encoded), settings.batch_size, seed, drawn)
        if drawn != epoch:
            batches = [batches[i] for i in rng_for(seed, "order", epoch).permutation(len(batches))]
        for indices in batches:
            if done == settings.steps:
                return
            yield indices
            done += 1
        epoch += 1


def count_steps(encoded: Encoded, settings: TrainSettings) -> int:
    """Count the batches that `training_batches` yields."""
    if settings.steps is not None:
        return settings.steps
    return settings.epochs * math.ceil(len(encoded) / settings.batch_size)


def shuffled_batches(
    lengths: npt.NDArray[np.int64] | None, count: int, batch_size: int, seed: int, epoch: int
) -> list[npt.NDArray[np.int64]]:
    """Deal one epoch: shuffle, sort windows of WINDOW batches by length so that little is padding, shuffle batches."""
    rng = rng_for(seed, "batches", epoch)
    order = rng.permutation(count)
    if lengths is not None:
        span = WINDOW * batch_size
        windows = [order[i : i + span] for i in range(0, count, span)]
        order = np.concatenate([window[np.argsort(lengths[window], kind="stable")] for window in windows])
    batches = [order[i : i + batch_size] for i in range(0, count, batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]
