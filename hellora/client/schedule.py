"""Say what share of `train.lr` each step has: warm-up and fall, see `TrainSettings.share`.

Over a round s and T count the client's own steps of the round. Over a run T is what the client would take if it trained
in every round as it does in this one, and s has those of the rounds before: clients of unequal data are at the same
place of the schedule, whenever they were asked last.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch.optim import Optimizer

from hellora.client.batches import count_steps, training_batches
from hellora.core.exchange import ClientTask
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
    return [train.share(before + step, total) for step in range(count)]
