"""Train the row that a client was given."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hellora.client import not_finite
from hellora.client.batches import training_batches
from hellora.client.eight_bit import adamw_8bit
from hellora.client.evaluation import autocast, to_device
from hellora.client.rules import Rules
from hellora.client.schedule import scheduled_batches
from hellora.core.exchange import ClientTask, ClientUpdate, Policy, TrainSettings
from hellora.core.seeds import seed_for
from hellora.methods.strategies import LocalTraining
from hellora.model.memory import peak_memory
from hellora.model.policies import int8_activations, micro_batches
from hellora.model.prefix import PrefixCache, prefix_cache
from hellora.model.resident import AdaptedModel, BaseModel
from hellora.model.stand_ins import truncated
from hellora.tasks import Encoded, Task


class TrainingError(RuntimeError):
    """A client's training cannot go on; the client is rejected for the round."""


def train_client(
    task: ClientTask, base: BaseModel, kind: Task, rows: Any, rules: Sequence[LocalTraining] = ()
) -> ClientUpdate:
    """Encode the client's rows, a `datasets.Dataset` with the columns of `kind`, and train: see `train_encoded`."""
    return train_encoded(task, base, kind, kind.encode(base, rows), rules, lambda: labels_of(rows))


def train_encoded(
    task: ClientTask,
    base: BaseModel,
    kind: Task,
    encoded: Encoded,
    rules: Sequence[LocalTraining] = (),
    labels: Callable[[], Tensor | None] = lambda: None,
) -> ClientUpdate:
    """Train the components in `task.trained` (and the head) on a client's examples; nothing else gets a gradient.

    Args:
        task: what to train, from which adapter, how
        base: the model, which is lent out for the time being and is then as it was
        kind: the kind of model and data, such as `SequenceClassification()`
        encoded: the client's examples
        rules: rules of local training, in order
        labels: tells the class of each example, (examples,), to rules that ask; None where there are no classes

    Returns:
        What it trained, with `loss`, `steps`, `seconds` and, on CUDA or where bytes are promised, `peak_bytes`.

    Raises:
        TrainingError: the loss is nan or infinite; ValueError: a rule was told, or tells, what it did not declare.
    """
    started = time.perf_counter()
    rows = rows_of_steps(task, base, kind, encoded)
    with (
        peak_memory(base.device, task.spare_bytes) as peak,
        seeded(task.seed, base.device),
        lent_for(task, base) as adapted,
        prefix_cache(base.net, task, base.spec.layers, len(rows)) as prefix,
    ):
        at_work = Rules(rules, task, base, kind, adapted, labels)
        metrics = train_steps(task, base, kind, rows, adapted, prefix, at_work)
        named, adapter = at_work.end(), adapted.read()
    metrics["seconds"] = round(time.perf_counter() - started, 3)
    if peak.bytes is not None:
        metrics["peak_bytes"] = base.num_bytes + task.num_bytes + peak.bytes
    examples, tokens = len(encoded), encoded.num_tokens
    return ClientUpdate(task.round, task.client, examples, adapter, metrics, tokens, *named, task.attempt)


def rows_of_steps(task: ClientTask, base: BaseModel, kind: Task, encoded: Encoded) -> Encoded:
    """Return the rows that steps are made of, when the bare base has said what the task wants to know of them."""
    rows = kind.training_rows(base, encoded, task.seed)
    kind.before(base, rows, (int(row) for batch in training_batches(rows, task.train, task.seed) for row in batch))
    return rows


def lent_for(task: ClientTask, base: BaseModel) -> AbstractContextManager[AdaptedModel]:
    """Lend the model out for a task: what it trains gets gradients, all else of the adapter acts."""
    return base.adapted(
        task.adapter,
        task.trained,
        task.head != "frozen",
        factors=task.factors,
        bypass=task.bypass,
        policy=task.policy,
        cut=task.cut,
    )


def train_steps(
    task: ClientTask,
    base: BaseModel,
    kind: Task,
    encoded: Encoded,
    adapted: AdaptedModel,
    prefix: PrefixCache,
    rules: Rules,
) -> dict[str, float]:
    """Take all steps on a model that is lent out; return the mean `loss` and the number of `steps`."""
    settings, policy = task.train, task.policy
    rounding = torch.Generator(base.device).manual_seed(seed_for(task.seed, "int8"))
    optimizer = make_optimizer(adapted.parameters, settings)
    loss_sum = weight_sum = 0.0
    for steps, (share, indices) in enumerate(scheduled_batches(optimizer, task, encoded), 1):
        parts, losses, sums = micro_batches(indices, policy.micro_batch), list[Tensor](), list[Tensor]()
        passes = list(product(parts, rules.rank_shares))
        for part, rank_share in passes:
            batch = to_device(kind.collate(base, [encoded.examples[i] for i in part]), base.device)
            with truncated(adapted.lora.values(), rank_share):  # in backward, too, which may run blocks again
                with prefix.batch(part), numerics(base, policy, settings, rounding):
                    outputs = rules.outputs(kind.outputs(base, batch))
                loss, of_examples, weights = outputs.loss_sums.sum(), outputs.loss_sums.detach(), outputs.weights.sum()
                del batch, outputs  # else the logits would stay in memory while gradients are computed
                torch.autograd.backward(loss)
            losses.append(of_examples)
            sums.append(torch.stack([loss.detach(), weights]))
        values = torch.stack(sums).tolist()  # of each pass; the step's only look at the device
        bad = next((i for i, (value, _) in enumerate(values) if not math.isfinite(value)), None)
        if bad is not None:
            why = why_not_finite(task, base, kind, encoded, adapted, passes[bad][0], losses[bad])
            raise TrainingError(f"the loss became {values[bad][0]} at step {steps}: {why}")
        total, weight = (sum(each) for each in zip(*values, strict=True))
        scale_gradients(adapted.parameters, 1 / (weight or 1.0))
        rules.change_gradients()
        step_clipped(optimizer, adapted.parameters, settings.clip_norm)
        rules.stepped(total, weight, share)
        loss_sum, weight_sum = loss_sum + total, weight_sum + weight
    return {"loss": mean_loss(loss_sum, weight_sum), "steps": steps}


def mean_loss(loss_sum: float, weight_sum: float) -> float:
    """Return the mean of losses. Raise TrainingError where nothing was learned from."""
    if not weight_sum:
        raise TrainingError("none of its examples has a token to learn from: raise task.max_length")
    return loss_sum / weight_sum


def why_not_finite(
    task: ClientTask,
    base: BaseModel,
    kind: Task,
    encoded: Encoded,
    adapted: AdaptedModel,
    rows: npt.NDArray[np.int64],
    losses: Tensor,
) -> str:
    """Say what was not finite first in a pass over these rows of a client's examples, which had these losses."""
    batch = kind.collate(base, [encoded.examples[i] for i in rows])
    return not_finite.in_step(base, adapted, task.adapter, batch, losses, encoded.names(rows))


def labels_of(rows: Any) -> Tensor | None:
    """Return the class of each row of a `datasets.Dataset`, (examples,); None where there is no column `label`."""
    if "label" not in getattr(rows, "column_names", ()):
        return None
    return torch.tensor(rows["label"][:])


# ------------------------------------------------------------------------------------------------- the parts of a step


def scale_gradients(parameters: Sequence[nn.Parameter], factor: float) -> None:
    """Multiply every gradient in place. A parameter without one is an expert's that saw no token."""
    if gradients := [parameter.grad for parameter in parameters if parameter.grad is not None]:
        torch._foreach_mul_(gradients, factor)


def step_clipped(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], clip_norm: float | None) -> None:
    """Take a step, with gradients whose L2 norm is at most `clip_norm`, and forget them; None = as they are."""
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimizer.step()
    optimizer.zero_grad()


def make_optimizer(parameters: list[nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    if settings.optimizer == "adamw_8bit":
        return adamw_8bit(parameters, settings)
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


@contextmanager
def numerics(base: BaseModel, policy: Policy, settings: TrainSettings, rounding: torch.Generator) -> Iterator[None]:
    """Run a forward pass in the precision, and keep activations in the form, that a client's policy asks for."""
    keeping = int8_activations(rounding) if policy.int8_activations else nullcontext()
    with keeping, autocast(base, "bf16" if policy.bf16 else settings.precision):
        yield


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generator, from which dropout draws, for one client's training; then put it back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
