"""Find what an adapter makes of examples: predictions, metrics, and the Fisher information of its layers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hellora.client.own_metrics import Metric, Probabilities, more_metrics
from hellora.client.sample import Interval, accuracy_interval, loss_interval
from hellora.core.exchange import Outputs, Precision
from hellora.core.per_class import PerClass
from hellora.core.types import Adapter
from hellora.data.settings import ONE_CLASS
from hellora.methods.context import Scores
from hellora.methods.local import add_squared_norms
from hellora.model.bf16 import has_bf16
from hellora.model.resident import BaseModel
from hellora.model.stand_ins import PerExampleError
from hellora.tasks import Answered, Batch, Encoded, Example, Task


@dataclass(frozen=True, eq=False)
class Evaluation:
    """An evaluation says what an adapter makes of some rows.

    `per_class` counts how each class is recognised that occurs or is predicted, where there are classes.
    Where each client has a model of its own, `metrics` is the mean, `per_class` the sum, `clients` has each one's
    metrics, by client id, and `rows` of how many rows these are.
    `intervals` has the 95 % interval of the accuracy (Wilson) and the loss (normal), were the rows a sample of many;
    `sampled` says how many were drawn of how many, None where all rows were evaluated.
    """

    metrics: dict[str, float]
    per_class: PerClass = field(default_factory=PerClass)
    clients: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    rows: Mapping[int, int] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    sampled: tuple[int, int] | None = None
    answers: Sequence[Answered] = ()  # of a language model, where prompts were answered

    @staticmethod
    def of_clients(
        clients: Mapping[int, Mapping[str, float]], rows: Mapping[int, int], per_class: Iterable[PerClass]
    ) -> "Evaluation":
        """Put together what clients' own models make of their own rows; `metrics` is the mean over all of them."""
        found = Evaluation({}, PerClass.sum(per_class), clients=clients, rows=rows)
        return replace(found, metrics=found.mean_over(clients))

    def mean_over(self, clients: Iterable[int]) -> dict[str, float]:
        """Return the mean of these clients' own metrics, weighted by the numbers of their rows; {} of nobody."""
        totals: dict[str, float] = {}
        count = 0
        for client in clients:
            count += self.rows[client]
            for name, value in self.clients[client].items():
                totals[name] = totals.get(name, 0.0) + value * self.rows[client]
        return {name: total / count for name, total in totals.items()}

    @property
    def sample(self) -> dict[str, Any] | None:
        """Return what rounds.jsonl says of the sample; None where all rows were evaluated."""
        if self.sampled is None:
            return None
        examples, total = self.sampled
        intervals = {name: [round(end, 6) for end in interval] for name, interval in self.intervals.items()}
        return {"examples": examples, "of": total, "intervals": intervals}


def evaluate(
    adapter: Adapter,
    base: BaseModel,
    kind: Task,
    rows: Any,
    batch_size: int,
    precision: Precision = "fp32",
    encoded: Encoded | None = None,
    asked: Any = None,
    more: Sequence[Metric] = (),
) -> Evaluation:
    """Evaluate an adapter on rows (a `datasets.Dataset` with the columns of `kind`), `batch_size` at a time.

    The whole adapter is merged in. Losses are in nats, per example or, of language, per supervised token. `encoded` are
    the rows, where they are encoded already; of `asked`, or else of the rows, the first prompts are answered. `more`
    are metrics besides the task's own.
    """
    encoded = kind.encode(base, rows) if encoded is None else encoded
    kind.before(base, encoded, range(len(encoded)))
    with torch.no_grad(), base.adapted(adapter):
        found = measure(lambda batch: kind.outputs(base, batch), base, kind, encoded, batch_size, precision, more)
        answers = kind.answered(base, rows if asked is None else asked)
        return replace(found, metrics={**found.metrics, **kind.answer_metrics(answers)}, answers=answers)


@torch.no_grad()
def answered(adapter: Adapter, base: BaseModel, kind: Task, rows: Any) -> Sequence[Answered]:
    """Answer the first prompts of rows with an adapter, as an evaluation does."""
    with base.adapted(adapter):
        return kind.answered(base, rows)


def measure(
    outputs_of: Callable[[Batch], Outputs],
    base: BaseModel,
    kind: Task,
    encoded: Encoded,
    batch_size: int,
    precision: Precision = "fp32",
    more: Sequence[Metric] = (),
) -> Evaluation:
    """Measure what `outputs_of` says of each batch, the shortest texts first. The caller switches gradients off."""
    losses, weights, said = list[Tensor](), list[Tensor](), list[Tensor]()  # of each batch, on the device till the end
    probabilities: list[Tensor] | None = [] if any(metric.takes_probabilities for metric in more) else None
    numbers: dict[str, list[Tensor]] = {}
    references: list[Any] = []
    for indices in evaluation_batches(encoded, batch_size):
        batch = kind.collate(base, [encoded.examples[i] for i in indices])
        with autocast(base, precision):
            outputs = outputs_of(to_device(batch, base.device))
        losses.append(outputs.loss_sums)
        weights.append(outputs.weights)
        for name, values in outputs.numbers.items():
            numbers.setdefault(name, []).append(values)
        if outputs.predictions is not None:
            said.append(outputs.predictions)
            references += kind.references(batch)
        if probabilities is not None and outputs.logits is not None:
            probabilities.append(outputs.logits.float().softmax(-1).cpu())
    loss_sums, counts = in_doubles(losses), in_doubles(weights)
    total = sum(float(part.sum()) for part in counts)
    loss = sum(float(part.sum()) for part in loss_sums) / (total or 1.0)  # the first rows alone may count for nothing
    told, right = kind.by_name(base, listed(said)), kind.by_name(base, references)
    found = scored(kind, loss, told, right, torch.cat(probabilities).numpy() if probabilities else None, more)
    weighed = torch.cat(counts)
    means = {
        name: float((torch.cat(in_doubles(each)) * weighed).sum() / weighed.sum()) for name, each in numbers.items()
    }
    of_loss = loss_interval(torch.cat(loss_sums).numpy(), weighed.numpy())
    return replace(found, metrics={**found.metrics, **means}, intervals={"loss": of_loss, **found.intervals})


def scored(
    kind: Task,
    loss: float,
    predictions: Sequence[Any],
    references: Sequence[Any],
    probabilities: Probabilities | None,
    more: Sequence[Metric],
) -> Evaluation:
    """Score what was said of all examples against what is right; `loss` is the mean loss."""
    asked = more_metrics(more, predictions, references, probabilities)
    metrics = {**kind.metrics(loss, predictions, references), **asked}
    per_class = kind.per_class(predictions, references) if references else PerClass()
    if not references or kind.columns not in ONE_CLASS:
        return Evaluation(metrics, per_class)
    right = sum(one == other for one, other in zip(predictions, references, strict=True))
    return Evaluation(metrics, per_class, intervals={"accuracy": accuracy_interval(right, len(references))})


def listed(batches: Sequence[Tensor]) -> list[Any]:
    """List what is said of each example, of tensors of one device, (batch, …): at once where batches are alike."""
    if len({batch.shape[1:] for batch in batches}) == 1:
        together: list[Any] = torch.cat(list(batches)).tolist()
        return together
    return [row for batch in batches for row in batch.tolist()]


def in_doubles(batches: Sequence[Tensor]) -> list[Tensor]:
    """Bring tensors (batch,) of one device to the CPU, all at once, as float64."""
    together = torch.cat(list(batches)).cpu()
    return [part.double() for part in torch.split(together, [len(batch) for batch in batches])]


def fisher_scores(adapter: Adapter, base: BaseModel, kind: Task, encoded: Encoded, batch_size: int) -> Scores:
    """Score each layer by the trace of its empirical Fisher block (Fed-HeLLo, FIM-HLA): Γ (layers,).

    Γ(j) = 1/|D| Σ_d ‖∇_θ_j f(d)‖², where f(d) is the mean loss of example d, over every example, in eval mode, head
    excluded. Each example of a batch has its own copy of the adapter, so one backward pass gives all per-example
    gradients; a model that merges the batch with another dimension is done example by example instead.
    """
    kind.before(base, encoded, range(len(encoded)))
    try:
        total = sum_of_squares(adapter, base, kind, encoded, batch_size, batch_dims(base, kind, encoded))
    except PerExampleError:
        total = sum_of_squares(adapter, base, kind, encoded, None)
    return total / len(encoded)


@torch.no_grad()
def batch_dims(base: BaseModel, kind: Task, encoded: Encoded) -> dict[str, int]:
    """Find which dimension of each adapted module's input counts the examples: the one that grows with the batch.

    Most models hold (batch, tokens, d) there, some (tokens, batch, d); in one batch of as many tokens as examples the
    two look alike.

    Raises:
        PerExampleError: some module's input has no such dimension, or is not even there.
    """
    of_two, of_three = (input_shapes(base, kind, [encoded.examples[0]] * count) for count in (2, 3))
    found = {module.name: grown(of_two[module.name], of_three[module.name]) for module in base.spec.modules}
    dims = {name: dim for name, dim in found.items() if dim is not None}
    if len(dims) < len(found):
        raise PerExampleError("a module does not see its examples one by one")
    return dims


def input_shapes(base: BaseModel, kind: Task, examples: Sequence[Example]) -> dict[str, list[torch.Size]]:
    """Return the shapes of what each adapted module is given in one forward pass, by its name."""
    shapes: dict[str, list[torch.Size]] = {module.name: [] for module in base.spec.modules}
    hooks = [
        base.net.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(inputs[0].shape)
        )
        for name, seen in shapes.items()
    ]
    try:
        with autocast(base, "fp32"):
            kind.outputs(base, to_device(kind.collate(base, examples), base.device))
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def grown(before: Sequence[torch.Size], after: Sequence[torch.Size]) -> int | None:
    """Return the dimension that is 2 in every shape before and 3 after, while all others stay; None if there is none.

    What has two dimensions only, such as the tokens that an expert sees, mixes examples.
    """
    if not before or [len(shape) for shape in before] != [len(shape) for shape in after]:
        return None
    pairs = list(zip(before, after, strict=True))
    found = {dim for a, b in pairs for dim in range(len(a)) if a[dim] != b[dim]}
    dim = found.pop() if len(found) == 1 else None
    return dim if dim is not None and all(len(a) > 2 and (a[dim], b[dim]) == (2, 3) for a, b in pairs) else None


def sum_of_squares(
    adapter: Adapter,
    base: BaseModel,
    kind: Task,
    encoded: Encoded,
    batch_size: int | None,
    dims: Mapping[str, int] = MappingProxyType({}),
) -> Scores:
    """Sum Σ_d ‖∇_θ_j f(d)‖² per layer, over `batch_size` examples at a time with a copy each; None = one at a time,
    without copies. `dims` says which dimension of a module's input counts the examples."""
    everything = np.ones((base.spec.num_layers, base.spec.max_rank), dtype=bool)
    total = np.zeros(base.spec.num_layers)
    for indices in evaluation_batches(encoded, batch_size or 1):
        copies = None if batch_size is None else len(indices)
        with base.adapted(adapter, everything, copies=copies, batch_dims=dims) as adapted:
            base.net.eval()
            batch = to_device(kind.collate(base, [encoded.examples[i] for i in indices]), base.device)
            with autocast(base, "fp32"):
                outputs = kind.outputs(base, batch)
            torch.autograd.backward((outputs.loss_sums / outputs.weights.clamp(min=1)).sum())
            pairs = {name: (module.A, module.B) for name, module in adapted.lora.items()}
            total += add_squared_norms(np.zeros_like(total), pairs, base.spec)
    return total


def evaluation_batches(encoded: Encoded, batch_size: int) -> list[npt.NDArray[np.int64]]:
    """Cut every example once into batches, in order of length."""
    order = np.arange(len(encoded))
    if encoded.lengths is not None:
        order = np.argsort(encoded.lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch to a device; to a GPU from pinned memory, without waiting until it is there."""
    if device.type == "cuda":
        return {name: value.pin_memory().to(device, non_blocking=True) for name, value in batch.items()}
    return {name: value.to(device) for name, value in batch.items()}


def autocast(base: BaseModel, precision: Precision) -> AbstractContextManager[None]:
    """Cast to bf16 where asked for, where the device has it (auto), and always where the base is not float32. A float16
    base on a CPU stays float16: its normalisations take no two half formats at once."""
    device = base.device.type
    wanted = precision == "bf16" or (precision == "auto" and has_bf16(device)) or base.dtype != torch.float32
    keeps = device == "cpu" and base.dtype == torch.float16
    return torch.autocast(device, dtype=torch.float16 if keeps else torch.bfloat16, enabled=wanted)
