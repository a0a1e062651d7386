"""Train a client that has a part of the model of its own: its head, a factor of its pairs, or both.

What is its own comes with no task, but for the first head, and is in no answer. It begins as everybody's does, which is
drawn by the experiment's seed; from then on it is what the client kept, under "private/…". After training the client
measures its model on examples that it holds out, and tells sums.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from hellora.client.evaluation import measure
from hellora.client.train import TrainingError, lent_for
from hellora.client.work import ClientWork
from hellora.core.algebra import starting_adapter
from hellora.core.errors import InputError
from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate, Named
from hellora.core.held_out import HeldOut
from hellora.core.state import owned, select
from hellora.core.types import Adapter
from hellora.methods.sharing import private_part, with_own, with_private, with_trained
from hellora.model.resident import BaseModel

PRIVATE = "private"

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TrainedOwn:
    """Holds what comes of a task: the answer, and the client's own model, of which the server has a part alone."""

    update: ClientUpdate  # `kept` has what the client keeps: of its rules, and of the model
    adapter: Adapter  # what is shared as it was received, what is the client's own as it is now


def attempt_with_own(
    work: ClientWork, task: ClientTask, kept: Named, seed: int, held_out: Rows | None
) -> TrainedOwn | ClientFailure:
    """Train a task, and measure what comes of it; a client that raises is rejected with what it raised.

    Args:
        work: whose `parts` leave out what is held out
        task: as it came
        kept: what the client kept of its last task that counted, {} of its first
        seed: of the experiment
        held_out: the rows to measure on; None where nothing is to be measured now
    """
    try:
        begun, mine = begin(task, kept, work.base, seed)
    except (InputError, ValueError, KeyError) as error:
        return ClientFailure(task.client, "rejected", f"what this client kept does not fit the task: {error}")
    answer = work.attempt(begun)
    if isinstance(answer, ClientFailure):
        return answer
    try:
        told = {} if held_out is None else measured(work, begun, answer.adapter, held_out).as_metrics()
    except Exception as error:
        return ClientFailure(task.client, "rejected", f"{type(error).__name__}: {error}")
    own = {**select(kept, PRIVATE), **private_part(begun, answer, mine, work.base.spec)}
    update = replace(answer, kept={**answer.kept, **owned(own, PRIVATE)}, metrics={**answer.metrics, **told})
    return TrainedOwn(update, with_own(task, with_private(mine, own), work.base.spec).adapter)


def begin(task: ClientTask, kept: Named, base: BaseModel, seed: int) -> tuple[ClientTask, Adapter]:
    """Return the task with what is the client's own in its place, and that with all rank components.

    Raises:
        InputError: the client has a head of its own, and neither it nor the task has all of it.
    """
    own = select(kept, PRIVATE)
    head = {**task.adapter.head, **select_head(own)}
    if task.head == "local" and head.keys() != set(base.head_names):
        raise InputError("it has no head of its own, and none came along")
    mine = with_private(starting_adapter(base.spec, head, seed), own)
    of_rules = {name: tensor for name, tensor in kept.items() if not name.startswith(f"{PRIVATE}/")}
    return replace(with_own(task, mine, base.spec), kept=of_rules), mine


def select_head(own: Named) -> dict[str, torch.Tensor]:
    """Return the head among a client's own tensors, by parameter name."""
    return {name.removeprefix("head."): tensor for name, tensor in own.items() if name.startswith("head.")}


def measured(work: ClientWork, task: ClientTask, trained: Adapter, rows: Rows) -> HeldOut:
    """Measure what the client has after a task on some of its rows, in batches no larger than those it trains on, with
    the precision and the places of constants that it trains with: so it takes no more memory.

    Blocks that were left out in training act: the model is used whole.

    Raises:
        TrainingError: the loss is nan or infinite.
    """
    base, after = work.base, with_trained(task, trained, work.base.spec)
    size = task.policy.micro_batch or task.train.batch_size
    precision = "bf16" if task.policy.bf16 else task.train.precision
    policy = replace(task.policy, recompute="none")  # nothing is kept for a backward pass
    with lent_for(replace(task, adapter=after, bypass=False, policy=policy), base), torch.no_grad():
        base.net.eval()
        found = measure(
            lambda batch: work.kind.outputs(base, batch), base, work.kind, work.encoded.select(rows), size, precision
        )
    loss, accuracy = found.metrics["loss"], found.metrics.get("accuracy")
    if not math.isfinite(loss):
        raise TrainingError(f"the loss on held-out examples is {loss}")
    right = None if accuracy is None else round(accuracy * len(rows))
    return HeldOut(len(rows), loss * len(rows), right, HeldOut.classes_of(found.per_class))
