"""Say what share of `train.lr` each step has: warm-up and fall as in transformers' `get_scheduler`.

    s of T steps, w of them warm-up          s/w                          below w
                                             1                            constant
                                             (T − s) / (T − w)            linear
                                             (1 + cos π(s−w)/(T−w)) / 2   cosine

Over a round s and T count the client's own steps of the round. Over a run T is what the client would take if it trained
in every round as it does in this one, and s has those of the rounds before: clients of unequal data are at the same
place of the schedule, whenever they were asked last.
"""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch.optim import Optimizer

from hellora.client.batches import count_steps, training_batches
from hellora.core.exchange import ClientTask, TrainSettings
from hellora.tasks import Encoded


def scheduled_batches(
    optimizer: Optimizer, task: ClientTask, encoded: Encoded
) -> Iterator[tuple[float, npt.NDArray[np.int64]]]:
    """Yield the share of `train.lr` that each step has, whose rate the optimizer is given, and its batch's indices."""
    batches = training_batches(encoded, task.train, task.seed)
    for found, indices in zip(shares(task, count_steps(encoded, task.train)), batches, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = task.train.lr * found
        yield found, indices


def shares(task: ClientTask, count: int) -> list[float]:
    """Return the share of the learning rate that each of the task's `count` steps has."""
    train = task.train
    before, total = (task.round * count, task.rounds * count) if train.schedule_over == "run" else (0, count)
    return [share(train, before + step, total) for step in range(count)]


def share(settings: TrainSettings, step: int, total: int) -> float:
    """Return the share of the learning rate that step `step` of `total` has, 0 to 1."""
    warmup = math.ceil(settings.warmup * total) if total > 1 else 0  # a lone step would have a rate of 0
    if step < warmup:
        return step / warmup
    if settings.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return 1.0 - done if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
