"""Server and clients exchange these values in a round; some of them say how a client is to train."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from hellora.core.errors import InputError
from hellora.core.types import Adapter, Mask

HeadPolicy = Literal["aggregate", "frozen", "local", "closed_form"]
Factors = Literal["both", "A", "B"]  # which factors of its LoRA pairs a client trains
Precision = Literal["auto", "fp32", "bf16"]
Schedule = Literal["constant", "linear", "cosine"]  # how the learning rate falls after its warm-up
Recompute = Literal["none", "frozen", "all"]
WireFormat = Literal["fp32", "bf16", "int8"]  # how tensors travel: see codec.py
Named = Mapping[str, Tensor]  # named tensors: a brief, a report, or what a client keeps


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A spec says what a named tensor must be. The tensor travels as it is: no wire format rounds it."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    low: float = -math.inf  # no number is below
    high: float = math.inf  # or above
    may_be_nan: bool = False  # nan stands where there is nothing to say
    optional: bool = False  # it may be absent

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @staticmethod
    def of(tensor: Tensor) -> "TensorSpec":
        return TensorSpec(tuple(tensor.shape), tensor.dtype)

    def problem_with(self, tensor: Tensor) -> str | None:
        """Say why a tensor is not of this kind, or return None."""
        if tuple(tensor.shape) != self.shape or tensor.dtype != self.dtype:
            return f"is {tensor.dtype} {tuple(tensor.shape)}, expected {self.dtype} {self.shape}"
        told = tensor[~tensor.isnan()] if self.may_be_nan else tensor
        if not told.isfinite().all():
            return "has nan or infinite values"
        below = self.low > -math.inf and bool((told < self.low).any())  # most tensors have no bounds
        if below or (self.high < math.inf and bool((told > self.high).any())):
            return f"has values outside {self.low:g} to {self.high:g}"
        return None


@dataclass(frozen=True, slots=True)
class Declared:
    """A task declares its named tensors: what goes down, what comes up, what its client keeps for its next task."""

    brief: Mapping[str, TensorSpec] = field(default_factory=dict)
    report: Mapping[str, TensorSpec] = field(default_factory=dict)
    kept: Mapping[str, TensorSpec] = field(default_factory=dict)
    scratch_bytes: int = 0  # what a rule of local training holds besides, while it trains

    @property
    def bytes_down(self) -> int:
        return sum(spec.num_bytes for spec in self.brief.values())

    @property
    def bytes_up(self) -> int:
        return sum(spec.num_bytes for spec in self.report.values())

    @property
    def bytes_held(self) -> int:
        """Count, while a client trains, what it was sent and has kept, what it will report and keep, and the rest."""
        kept = sum(spec.num_bytes for spec in self.kept.values())
        return self.bytes_down + self.bytes_up + 2 * kept + self.scratch_bytes


def problem_with_named(tensors: Named, declared: Mapping[str, TensorSpec], what: str) -> str | None:
    """Say why named tensors are not what was declared, or return None. `what` names them: a brief, a report …"""
    if unknown := sorted(tensors.keys() - declared.keys()):
        return f"{what} {unknown[0]} was not declared"
    for name, spec in declared.items():
        if name not in tensors:
            if not spec.optional:
                return f"{what} {name} is absent"
        elif reason := spec.problem_with(tensors[name]):
            return f"{what} {name} {reason}"
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """A forward pass says this of each example. The mean loss is loss_sums.sum() / weights.sum().

    A row of `logits` is an example or, of a language model, a supervised token; None where a task does not tell them.
    """

    loss_sums: Tensor  # (batch,): classification: the loss; language: summed over supervised tokens
    weights: Tensor  # (batch,): classification: 1; language: the number of supervised tokens
    predictions: Tensor | None = None  # (batch,) class indices
    logits: Tensor | None = None  # (rows, classes)
    labels: Tensor | None = None  # (rows,): the class of each row
    numbers: Named = field(default_factory=dict)  # (batch,) each: more metrics, as weighted means


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """These settings say how one client trains in one round."""

    lr: float = 1e-3  # the largest, where it follows a schedule
    schedule: Schedule = "constant"  # after the warm-up it stays, or falls to 0 in a line or half a cosine
    warmup: float = 0.0  # share of the schedule's steps in which it rises from 0, below 1
    schedule_over: Literal["run", "round"] = "run"  # whose steps the schedule has: all rounds', or each round's own
    optimizer: Literal["adamw", "sgd", "adamw_8bit"] = "adamw"  # 8bit: its states, by bitsandbytes
    momentum: float = 0.0  # of sgd
    weight_decay: float = 0.01  # torch's default for AdamW
    batch_size: int = 16  # examples per step
    epochs: int = 1  # passes over its own examples, in a round
    steps: int | None = None  # optimizer updates; replaces `epochs` where given
    same_batches: bool = False  # every epoch has the batches of the first, in another order
    clip_norm: float | None = None  # largest L2 norm of all trained gradients together
    precision: Precision = "fp32"  # of arithmetic: fp32, bf16 (autocast), or auto: bf16 where the device has it

    def __post_init__(self) -> None:
        for name in ("lr", "batch_size", "epochs", "steps", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be greater than 0, not {value}")
        for name in ("momentum", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, but it is {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the schedule's steps, 0 to below 1, not {self.warmup}")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError("momentum is a setting of optimizer = 'sgd'; AdamW has its own")

    def share(self, step: int, total: int) -> float:
        """Return the share of `lr` that step `step` of `total` has, 0 to 1; as transformers' `get_scheduler`.

        s of T steps, w of them warm-up          s/w                          below w
                                                 1                            constant
                                                 (T − s) / (T − w)            linear
                                                 (1 + cos π(s−w)/(T−w)) / 2   cosine
        """
        warmup = math.ceil(self.warmup * total) if total > 1 else 0  # a lone step would have a rate of 0
        if step < warmup:
            return step / warmup
        if self.schedule == "constant":
            return 1.0
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        return 1.0 - done if self.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))

    def share_of_round(self, round: int, rounds: int, steps: int = 10) -> float:
        """Return the mean share of `lr` over a round of the run, of clients that take so many steps in it."""
        if self.schedule_over == "round":
            return 1.0  # the same in every round
        steps = self.steps or steps
        return sum(self.share(round * steps + step, rounds * steps) for step in range(steps)) / steps


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy says how a client trains its row within its memory. All but `int8_activations` and `bf16` leave the
    gradients as they are, up to the order of sums.

    Attributes:
        recompute: blocks that keep only their input, and are run again in backward: `frozen` those that train
            nothing, above the shallowest that trains; `all` those that train, too
        int8_activations: what backward needs is kept as int8, in groups with a scale each
        bf16: bfloat16 autocast
        micro_batch: examples in one forward and backward pass; None = the whole batch. The step is the same
        prefix_cache: where the output of the blocks below the shallowest trained one is kept, batch by batch, for
            when the batch comes again; that takes `TrainSettings.same_batches`
        prefix_cache_bytes: what the cache may take; what does not fit is computed again. None = no limit
        merge: frozen rank components are added to a copy of their weight, which costs memory; False: they are
            kept beside it, which costs time
    """

    recompute: Recompute = "none"
    int8_activations: bool = False
    bf16: bool = False
    micro_batch: int | None = None
    prefix_cache: Literal["none", "memory", "disk"] = "none"
    prefix_cache_bytes: int | None = None
    merge: bool = True

    @property
    def in_words(self) -> str:
        """Say what is done, such as "recompute_frozen, micro_batch 4"; "plain" for nothing."""
        parts = [f"recompute_{self.recompute}"] if self.recompute != "none" else []
        parts += [name for name in ("int8_activations", "bf16") if getattr(self, name)]
        parts += [] if self.micro_batch is None else [f"micro_batch {self.micro_batch}"]
        parts += [f"prefix_cache ({self.prefix_cache})"] if self.prefix_cache != "none" else []
        return ", ".join(parts + ["beside"] * (not self.merge)) or "plain"


@dataclass(frozen=True, slots=True, eq=False)
class ClientTask:
    """A task holds all that one client needs for one round, and nothing of other clients."""

    round: int
    client: int
    seed: int  # of this task alone
    adapter: Adapter  # as dispatched
    trained: Mask  # (layers, max_rank): the client's row of the allocation
    train: TrainSettings
    head: HeadPolicy = "aggregate"
    factors: Factors = "both"  # which it trains
    shares: Factors = "both"  # which of them are aggregated; another is the client's own, as a local head is
    private: bool = False  # what is the client's own stays with it, and is in neither task nor answer
    cut: bool = False  # a pair in which it trains has only the components that it trains, in their order
    bypass: bool = False  # blocks with nothing to train are left out of the client's model
    policy: Policy = Policy()
    brief: Named = field(default_factory=dict)  # of the rules of local training, "rule/name"
    kept: Named = field(default_factory=dict)  # likewise: what the client kept of its last task that counted
    spare_bytes: int | None = None  # of the client's budget, beyond what it is predicted to hold; None: none promised
    kept_version: int | None = None  # the round of that task, where clients keep it themselves; None = nothing is kept
    attempt: int = 0  # at the round; an answer to another attempt does not count
    sums: str = ""  # the pass of the start that the client sums its features for, instead of training; "" = it trains
    rounds: int = 1  # of the whole run, by which a schedule knows where in it the round is
    declared: Declared = Declared()  # what its named tensors must be; known to both sides, so that it does not travel

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all tensors that came with it."""
        return self.adapter.num_bytes + sum(t.nbytes for named in (self.brief, self.kept) for t in named.values())

    def __post_init__(self) -> None:
        if self.policy.prefix_cache != "none" and not self.train.same_batches:
            raise InputError("a prefix cache needs train.same_batches = true: no batch comes twice without it")


@dataclass(frozen=True, slots=True, eq=False)
class ClientUpdate:
    """A client returns an update: the trained values of the components in its row, and of the head."""

    round: int
    client: int
    num_examples: int
    adapter: Adapter  # what the client trained, and nothing else
    metrics: Mapping[str, float] = field(default_factory=dict)  # loss, steps, seconds
    num_tokens: int | None = None  # supervised tokens among its data; language models only
    report: Named = field(default_factory=dict)  # what rules of local training tell the server, "rule/name"
    kept: Named = field(default_factory=dict)  # what they keep; it never leaves a real client
    attempt: int = 0  # of the task that it answers
    most_weight: float = math.inf  # the server lets it weigh no more: see guard.max_weight

    @property
    def weight(self) -> float:
        """Return n_i of the papers: examples, or supervised tokens where there are tokens to predict."""
        return min(float(self.num_examples if self.num_tokens is None else self.num_tokens), self.most_weight)


@dataclass(frozen=True, slots=True)
class ClientFailure:
    """A client gave no usable update: `rejected` it answered badly or raised, `missing` it did not answer."""

    client: int
    kind: Literal["missing", "rejected"]
    reason: str
