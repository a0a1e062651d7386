"""Floor 4: what happens at a client: train the row that it was given."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hellora.algebra import new_adapter
from hellora.evaluation import autocast, squared_norms, to_device
from hellora.memory import peak_memory
from hellora.policies import int8_activations, micro_batches
from hellora.prefix import prefix_cache
from hellora.resident import BaseModel, LoraLinear
from hellora.seeds import rng_for, seed_for
from hellora.tasks import Encoded, Task
from hellora.types import (
    ClientFailure,
    ClientTask,
    ClientUpdate,
    Policy,
    TrainSettings,
)

WINDOW = 16  # batches that are sorted by length together


class TrainingError(RuntimeError):
    """A client's training cannot go on; the client is rejected for the round."""


@dataclass(frozen=True, eq=False)
class ClientWork:
    """All that client work needs in one process: the resident base, the task, and the clients' data."""

    base: BaseModel
    task: Task
    data: Any  # datasets.Dataset with the task's columns
    parts: Sequence[npt.NDArray[np.int64]] | None  # the rows of each client, by id; None: all rows are one client's

    def train(self, task: ClientTask) -> ClientUpdate:
        """Train one client on its own rows; raises what `train_client` raises."""
        if self.parts is None:
            return train_client(task, self.base, self.task, self.data, self.encoded)
        return train_client(task, self.base, self.task, self.data.select(self.parts[task.client]))

    @cached_property
    def encoded(self) -> Encoded:
        """All rows, encoded once for all rounds."""
        return self.task.encode(self.base, self.data)

    def attempt(self, task: ClientTask) -> ClientUpdate | ClientFailure:
        """Train; a client that raises is rejected with what it raised, and the round goes on."""
        try:
            return self.train(task)
        except Exception as error:
            return ClientFailure(task.client, "rejected", f"{type(error).__name__}: {error}")

    def size(self, client: int) -> int:
        """How many examples a client has."""
        return len(self.data) if self.parts is None else len(self.parts[client])

    def warm_up(self) -> None:
        """Take a step on nothing: what libraries hold from then on is there before memory is measured."""
        base, spec = self.base, self.base.spec
        everything = np.ones((spec.num_layers, spec.max_rank), dtype=bool)
        for weight in base.net.parameters():
            weight.sum()  # weights in a file are read when they are first used
        try:
            with base.dressed(new_adapter(spec, base.initial_head(), 0), everything) as dressed:
                torch.autograd.backward(self.task.outputs(base, self.task.blank_batch(base, 4, 32)).loss_sums.sum())
                make_optimizer(dressed.parameters, TrainSettings()).step()
        except Exception:  # a task that cannot say what its batches are like, a model that refuses an empty text
            return


def train_client(
    task: ClientTask, base: BaseModel, kind: Task, rows: Any, encoded: Encoded | None = None
) -> ClientUpdate:
    """Train the components in `task.trained` (and the head) on the client's rows; nothing else gets a gradient.

    Args:
        task: what to train, from which adapter, how
        base: the model, which is lent out for the time being and is then as it was
        kind: the kind of model and data, such as `SequenceClassification()`
        rows: the client's examples, a `datasets.Dataset` with the columns of `kind`
        encoded: the rows, encoded, where they are already

    Returns:
        What it trained, with its mean loss (`loss`), the number of `steps`, the `seconds` and, on CUDA or where
        bytes are promised, the peak of memory (`peak_bytes`).

    Raises:
        TrainingError: the loss became nan or infinite.
    """
    started = time.perf_counter()
    encoded = kind.encode(base, rows) if encoded is None else encoded
    spec, settings, policy = base.spec, task.train, task.policy
    rounding = torch.Generator(base.device).manual_seed(seed_for(task.seed, "int8"))
    squares = np.zeros(spec.num_layers)
    loss_sum = weight_sum = 0.0
    steps = 0
    with (
        peak_memory(base.device, task.spare_bytes) as peak,
        seeded(task.seed, base.device),
        base.dressed(
            task.adapter, task.trained, task.head != "frozen", factors=task.factors, bypass=task.bypass, policy=policy
        ) as dressed,
        prefix_cache(base.net, task, spec.layers, len(encoded)) as prefix,
    ):
        tail = tail_of(dressed.lora, settings).detach() if settings.tail_penalty else None
        optimizer = make_optimizer(dressed.parameters, settings)
        for indices in training_batches(encoded, settings, task.seed):
            total = weight = 0.0
            for part in micro_batches(indices, policy.micro_batch):
                batch = to_device(kind.collate(base, [encoded.examples[i] for i in part]), base.device)
                with prefix.batch(part), numerics(base, policy, settings, rounding):
                    outputs = kind.outputs(base, batch)
                loss = outputs.loss_sums.sum()
                torch.autograd.backward(loss)
                total, weight = total + float(loss.detach()), weight + float(outputs.weights.sum())
            scale_gradients(dressed.parameters, 1 / max(weight, 1.0))
            if tail is not None:
                torch.autograd.backward(settings.tail_penalty * tail_of(dressed.lora, settings))
            if task.report_layer_scores:
                squares += squared_norms(dressed.lora, spec)
            if settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(dressed.parameters, settings.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            if not math.isfinite(total):
                raise TrainingError(f"the loss became {total} at step {steps}; a smaller train.lr may help")
            loss_sum, weight_sum = loss_sum + total, weight_sum + weight
        rank = None
        if tail is not None and tail_of(dressed.lora, settings) < tail:
            rank = kept_rank(int(task.trained.sum(axis=1).max()), settings)
        adapter = dressed.read()
    scores = None
    if task.report_layer_scores:
        scores = torch.from_numpy(np.where(task.trained.any(axis=1), squares / steps, np.nan))
    seconds = time.perf_counter() - started
    metrics = {"loss": loss_sum / weight_sum, "steps": steps, "seconds": round(seconds, 3)}
    if peak.bytes is not None:
        metrics["peak_bytes"] = base.num_bytes + task.adapter.num_bytes + peak.bytes
    return ClientUpdate(task.round, task.client, len(encoded), adapter, metrics, scores, encoded.num_tokens, rank)


# ------------------------------------------------------------------------------------------------- the parts of a step


def scale_gradients(parameters: Sequence[nn.Parameter], factor: float) -> None:
    """Multiply every gradient in place. A parameter without one is an expert's that saw no token."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad *= factor


def make_optimizer(parameters: list[nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def kept_rank(rank: int, settings: TrainSettings) -> int:
    """What is left of a rank without its tail, q = max(min_rank, ⌊γ rank⌋), at most `rank` (HetLoRA)."""
    return min(rank, max(settings.min_rank, math.floor(settings.tail_share * rank)))


def tail_of(lora: Mapping[str, LoraLinear], settings: TrainSettings) -> torch.Tensor:
    """Σ over modules of ‖B[:, q:]‖_F ‖A[q:]‖_F, with q = `kept_rank` of the components trained (HetLoRA)."""
    norm = torch.linalg.matrix_norm
    kept = [(module, kept_rank(len(module.A), settings)) for module in lora.values()]
    return torch.stack([norm(module.B[:, q:]) * norm(module.A[q:]) for module, q in kept]).sum()


def training_batches(encoded: Encoded, settings: TrainSettings, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """The indices of each step's batch: `steps` of them, or `epochs` passes over the data."""
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


def shuffled_batches(
    lengths: npt.NDArray[np.int64] | None, count: int, batch_size: int, seed: int, epoch: int
) -> list[npt.NDArray[np.int64]]:
    """One epoch: shuffle, sort windows of WINDOW batches by length so that little is padding, shuffle the batches."""
    rng = rng_for(seed, "batches", epoch)
    order = rng.permutation(count)
    if lengths is not None:
        span = WINDOW * batch_size
        windows = [order[i : i + span] for i in range(0, count, span)]
        order = np.concatenate([window[np.argsort(lengths[window], kind="stable")] for window in windows])
    batches = [order[i : i + batch_size] for i in range(0, count, batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


@contextmanager
def numerics(base: BaseModel, policy: Policy, settings: TrainSettings, rounding: torch.Generator) -> Iterator[None]:
    """A forward pass in the precision, and with activations kept in the form, that a client's policy asks for."""
    keeping = int8_activations(rounding) if policy.int8_activations else nullcontext()
    with keeping, autocast(base, "bf16" if policy.bf16 else settings.precision):
        yield


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's global generator: seed it for one client's training, and put it back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
