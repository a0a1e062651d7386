"""The prototypes of unequal ranks teach each other on public data (HeLoRA-KD, its step 2).

Pass 1 asks every prototype about the round's public batches and keeps what each ensemble of teachers says. Pass 2
trains one prototype after the other against it. The one base model of the process is lent to each in turn.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hellora.client import not_finite
from hellora.client.batches import shuffled_batches
from hellora.client.evaluation import Evaluation, autocast, measure, to_device
from hellora.client.own_metrics import Metric
from hellora.client.train import make_optimizer, seeded
from hellora.core.errors import RunError
from hellora.core.exchange import Outputs, Precision, TrainSettings
from hellora.core.seeds import seed_for
from hellora.core.types import Adapter, AdapterSpec, Mask
from hellora.methods.aggregators.mutual_distillation import MutualDistillation
from hellora.model.resident import BaseModel
from hellora.model.settings import GENERATES
from hellora.tasks import Batch, Encoded, Task


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A target is what teachers say of one batch, softened: the log-probability of every class, (rows, classes); of
    labels that of each label and of its absence, (rows, labels, 2).

    Of a language model, it has that of the k likeliest classes only, which `top` (rows, k) names, and last that of all
    others together, (rows, k + 1).
    """

    log_p: Tensor
    top: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Distillation:
    """A distillation has all that a server needs to let prototypes teach each other."""

    settings: MutualDistillation
    base: BaseModel
    kind: Task
    public: Encoded  # the public examples
    precision: Precision = "fp32"
    train_head: bool = True

    def distil(self, students: Mapping[int, Adapter], weights: Mapping[int, float], seed: int) -> dict[int, Adapter]:
        """Return the prototypes by rank, each trained against its ensemble, in which they have `weights`.

        The result depends on the arguments only: `seed` decides the batches and the dropout.

        Raises:
            RunError: a loss became nan or infinite.
        """
        targets = self.targets(students, weights, seed)
        return {rank: self.taught(students[rank], rank, targets[rank], seed) for rank in students}

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield the public batches of a round: `kd_steps` of them, or one pass over the data if that is less."""
        public = self.public
        drawn = shuffled_batches(public.lengths, len(public), self.settings.kd_batch_size, seed, epoch=0)
        for indices in drawn[: self.settings.kd_steps]:
            examples = [public.examples[i] for i in indices]
            yield to_device(self.kind.collate(self.base, examples), self.base.device)

    def targets(
        self, prototypes: Mapping[int, Adapter], weights: Mapping[int, float], seed: int
    ) -> dict[int, list[Target]]:
        """Return what each prototype is to learn, by its rank, batch by batch, on the CPU."""
        others = {rank: tuple(r for r in prototypes if r != rank) for rank in prototypes}
        teachers = dict.fromkeys(prototypes, tuple(prototypes)) if self.settings.include_self else others
        said: dict[tuple[int, ...], list[Target]] = {ranks: [] for ranks in teachers.values()}
        top_k = self.settings.top_k if self.kind.kind() in GENERATES else None
        for batch in self.batches(seed):
            with autocast(self.base, self.precision):
                logits = {rank: logits_of(adapter, self.base, self.kind, batch) for rank, adapter in prototypes.items()}
            for rank, of_rank in logits.items():
                if not of_rank.isfinite().all():
                    why = not_finite.in_model(self.base, prototypes[rank]) or "its weights are finite, not so its sums"
                    raise RunError(f"the prototype of rank {rank} says nan, and teaches nothing: {why}")
            for ranks, targets in said.items():
                ensemble = mean_logits([logits[rank] for rank in ranks], [weights[rank] for rank in ranks])
                targets.append(soften(self.kind.distributions(ensemble), self.settings.temperature, top_k))
        return {rank: said[teachers[rank]] for rank in prototypes}

    def taught(self, student: Adapter, rank: int, targets: Sequence[Target], seed: int) -> Adapter:
        """Train one prototype by a step of AdamW on each batch: its pairs, and its head where heads are trained."""
        settings, row = self.settings, whole_row(self.base.spec, rank)
        with (
            seeded(seed_for(seed, "student", rank), self.base.device),
            self.base.adapted(student, row, self.train_head, cut=True) as adapted,
        ):
            optimizer = make_optimizer(adapted.parameters, TrainSettings(lr=settings.kd_lr))
            for batch, target in zip(self.batches(seed), targets, strict=True):
                with autocast(self.base, self.precision):
                    logits = self.kind.logits(self.base, batch)
                    outputs = self.kind.score(logits, batch)
                ce = outputs.loss_sums.sum() / outputs.weights.sum()
                kd = divergence(target, self.kind.distributions(logits), settings.temperature).mean()
                loss = settings.ce_weight * ce + settings.kd_weight * kd
                if not math.isfinite(value := float(loss.detach())):
                    rows = range(len(outputs.loss_sums))
                    losses = outputs.loss_sums.detach()
                    why = not_finite.in_step(self.base, adapted, student, batch, losses, rows, "method.kd_lr")
                    raise RunError(f"the loss of distillation became {value}: {why}")
                torch.autograd.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            learned = adapted.read()
        return replace(student, pairs=learned.pairs, head={**student.head, **learned.head})


def whole_row(spec: AdapterSpec, rank: int) -> Mask:
    """Return the row that trains every component of the prototype of a rank, (layers, max_rank)."""
    return np.tile(np.arange(spec.max_rank) < rank, (spec.num_layers, 1))


@torch.no_grad()
def logits_of(adapter: Adapter, base: BaseModel, kind: Task, batch: Batch) -> Tensor:
    """Return what a prototype says of a batch in eval mode, (rows, classes), in float32.

    Its pairs act as modules, as in its own training. To merge them into the weights for one batch would cost more.
    """
    rank = next(iter(adapter.pairs.values())).rank
    with base.adapted(adapter, whole_row(base.spec, rank), cut=True):
        base.net.eval()
        return kind.logits(base, batch).float()


def mean_logits(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return z̄ = Σ w z / Σ w, summed in the order given."""
    total = torch.zeros_like(logits[0])
    for z, weight in zip(logits, weights, strict=True):
        total += weight / sum(weights) * z
    return total


def soften(logits: Tensor, temperature: float, top_k: int | None) -> Target:
    """Take softmax(z / T) of every class, or of the `top_k` likeliest and of the rest together; move it to the CPU."""
    log_p = (logits / temperature).log_softmax(-1)
    if top_k is None or top_k >= logits.shape[-1]:
        return Target(log_p.cpu())
    top = log_p.topk(top_k, dim=-1).indices
    return Target(with_rest(log_p, top).cpu(), top.cpu())


def with_rest(log_p: Tensor, top: Tensor) -> Tensor:
    """Return the log-probabilities (rows, k) of the classes in `top`, and behind them that of all others together."""
    rest = log_p.scatter(-1, top, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_p.gather(-1, top), rest], -1)


def divergence(target: Target, logits: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(teachers ‖ softmax(z / T)) of each row, (rows,), or (rows, labels); classes are lumped together as
    in the target."""
    log_p = target.log_p.to(logits.device)
    log_q = (logits.float() / temperature).log_softmax(-1)
    if target.top is not None:
        log_q = with_rest(log_q, target.top.to(logits.device))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


def evaluate_ensemble(
    prototypes: Sequence[Adapter],
    base: BaseModel,
    kind: Task,
    encoded: Encoded,
    batch_size: int,
    precision: Precision = "fp32",
    more: Sequence[Metric] = (),
) -> Evaluation:
    """Evaluate the prototypes together, by the plain mean of their logits."""

    def outputs(batch: Batch) -> Outputs:
        logits = [logits_of(adapter, base, kind, batch) for adapter in prototypes]
        return kind.score(mean_logits(logits, [1.0] * len(logits)), batch)

    with torch.no_grad():
        return measure(outputs, base, kind, encoded, batch_size, precision, more)
