"""Floor 4: what happens at a client: train the row it was given, and what a server asks of its own data: evaluate the
global adapter, score its layers."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hellora.algebra import new_adapter
from hellora.memory import peak_memory
from hellora.policies import int8_activations, micro_batches
from hellora.prefix import prefix_cache
from hellora.protocols import Scores
from hellora.resident import BaseModel, LoraLinear, PerExampleError
from hellora.seeds import rng_for, seed_for
from hellora.tasks import Batch, Encoded, Outputs, Task, class_recall
from hellora.types import (
    Adapter,
    AdapterSpec,
    ClientFailure,
    ClientTask,
    ClientUpdate,
    Policy,
    Precision,
    TrainSettings,
)

WINDOW = 16  # batches that are sorted by length together


class TrainingError(RuntimeError):
    """A client's training cannot go on; the client is rejected for the round."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an adapter makes of some rows; `recall` is of every class that occurs in them (classification only).

    Where each client has a model of its own, `metrics` is the mean and `clients` has each one's, by client id.
    """

    metrics: dict[str, float]
    recall: Mapping[int, float] = field(default_factory=dict)
    clients: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ClientWork:
    """All that client work needs in one process: the resident base, the task, and the clients' data."""

    base: BaseModel
    task: Task
    data: Any  # datasets.Dataset with the task's columns
    parts: Sequence[npt.NDArray[np.int64]] | None  # the rows of each client, by id; None: all rows are one client's

    def train(self, task: ClientTask) -> ClientUpdate:
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

    `encoded` are the rows, encoded, where they are already.

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
        peak_memory(base.device) as peak,
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


def evaluate(
    adapter: Adapter, base: BaseModel, kind: Task, rows: Any, batch_size: int, precision: Precision = "auto"
) -> Evaluation:
    """An adapter on rows, the whole adapter folded in."""
    with torch.no_grad(), base.dressed(adapter):
        found = measure(lambda batch: kind.outputs(base, batch), base, kind, rows, batch_size, precision)
        return replace(found, metrics={**found.metrics, **kind.answer_metrics(base, rows)})


@torch.no_grad()
def predict(
    adapter: Adapter, base: BaseModel, kind: Task, rows: Any, batch_size: int, precision: Precision = "auto"
) -> Tensor:
    """What an adapter says of each row, in their order: logits (rows, classes), in float32 on the CPU.

    For classification; `Task.answer` is what language models do.
    """
    encoded = kind.encode(base, rows)
    found: dict[int, Tensor] = {}
    with base.dressed(adapter):
        for indices in evaluation_batches(encoded, batch_size):
            batch = to_device(kind.collate(base, [encoded.examples[i] for i in indices]), base.device)
            with autocast(base, precision):
                logits = kind.logits(base, batch).float().cpu()
            found |= dict(zip(indices.tolist(), logits, strict=True))
    return torch.stack([found[row] for row in range(len(found))])


def measure(
    outputs_of: Callable[[Batch], Outputs],
    base: BaseModel,
    kind: Task,
    rows: Any,
    batch_size: int,
    precision: Precision = "auto",
) -> Evaluation:
    """What `outputs_of` says of each batch, measured, the shortest texts first. The caller switches gradients off."""
    encoded = kind.encode(base, rows)
    loss_sum = weight_sum = 0.0
    predictions: list[int] = []
    references: list[int] = []
    for indices in evaluation_batches(encoded, batch_size):
        batch = to_device(kind.collate(base, [encoded.examples[i] for i in indices]), base.device)
        with autocast(base, precision):
            outputs = outputs_of(batch)
        loss_sum += float(outputs.loss_sums.double().sum())
        weight_sum += float(outputs.weights.double().sum())
        if outputs.predictions is not None:
            predictions += outputs.predictions.tolist()
            references += batch["labels"].tolist()
    metrics = kind.metrics(loss_sum / weight_sum, predictions, references)
    return Evaluation(metrics, class_recall(predictions, references))


def fisher_scores(adapter: Adapter, base: BaseModel, kind: Task, rows: Any, batch_size: int) -> Scores:
    """Γ(j) = 1/|D| Σ_d ‖∇_θ_j f(d)‖², the trace of layer j's empirical Fisher block (Fed-HeLLo, FIM-HLA); (layers,).

    f(d) is the mean loss of example d. Over every row, in eval mode, head excluded. Each example of a batch has its
    own copy of the adapter, so one backward pass gives all per-example gradients; a model that merges the batch with
    another dimension is done example by example instead.
    """
    encoded = kind.encode(base, rows)
    try:
        total = sum_of_squares(adapter, base, kind, encoded, batch_size)
    except PerExampleError:
        total = sum_of_squares(adapter, base, kind, encoded, None)
    return total / len(encoded)


def sum_of_squares(adapter: Adapter, base: BaseModel, kind: Task, encoded: Encoded, batch_size: int | None) -> Scores:
    """Σ_d ‖∇_θ_j f(d)‖² per layer; `batch_size` examples at a time with a copy each, or None: one, without copies."""
    everything = np.ones((base.spec.num_layers, base.spec.max_rank), dtype=bool)
    total = np.zeros(base.spec.num_layers)
    for indices in evaluation_batches(encoded, batch_size or 1):
        copies = None if batch_size is None else len(indices)
        with base.dressed(adapter, everything, copies=copies) as dressed:
            base.net.eval()
            batch = to_device(kind.collate(base, [encoded.examples[i] for i in indices]), base.device)
            with autocast(base, "fp32"):
                outputs = kind.outputs(base, batch)
            torch.autograd.backward((outputs.loss_sums / outputs.weights.clamp(min=1)).sum())
            total += squared_norms(dressed.lora, base.spec)
    return total


def squared_norms(lora: Any, spec: AdapterSpec) -> Scores:
    """The squared L2 norm of the gradients of each layer's trained pairs, (layers,)."""
    squares = np.zeros(spec.num_layers)
    for name, module in lora.items():
        gradients = [p.grad for p in (module.A, module.B) if p.grad is not None]  # none in an expert that saw no token
        squares[spec.layer_of[name]] += sum(float(g.float().square().sum()) for g in gradients)
    return squares


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


def evaluation_batches(encoded: Encoded, batch_size: int) -> list[npt.NDArray[np.int64]]:
    """Every example once, in order of length."""
    order = np.arange(len(encoded))
    if encoded.lengths is not None:
        order = np.argsort(encoded.lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device) for name, value in batch.items()}


def autocast(base: BaseModel, precision: Precision) -> AbstractContextManager[None]:
    """bf16 autocast where asked for, where the device has it (auto), and always where the base is not float32."""
    device = base.device.type
    has_bf16 = device == "cuda" and torch.cuda.is_bf16_supported()
    wanted = precision == "bf16" or (precision == "auto" and has_bf16) or base.dtype != torch.float32
    return torch.autocast(device, dtype=torch.bfloat16, enabled=wanted)


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
