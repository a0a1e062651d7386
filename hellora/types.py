"""Floor 0: the values that travel through a round. All are frozen; no tensor inside is ever changed in place."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hellora.errors import InputError

Mask = npt.NDArray[np.bool_]
HeadPolicy = Literal["aggregate", "frozen", "local"]
Factors = Literal["both", "A", "B"]  # which factors of its LoRA pairs a client trains
Precision = Literal["auto", "fp32", "bf16"]
Recompute = Literal["none", "frozen", "all"]
WireFormat = Literal["fp32", "bf16", "int8"]  # how tensors travel: see codec.py
Memory = Mapping[str, Tensor]  # what a strategy wants to find again next round; part of the checkpoint


@dataclass(frozen=True, slots=True, eq=False)
class LoraPair:
    """One module's low-rank update, ΔW = scale · B @ A. The scale travels with the pair."""

    A: Tensor  # (rank, d_in)
    B: Tensor  # (d_out, rank)
    scale: float  # alpha / rank

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or self.A.shape[0] != self.B.shape[1]:
            raise ValueError(f"A {tuple(self.A.shape)} and B {tuple(self.B.shape)} do not share a rank")

    @property
    def rank(self) -> int:
        return self.A.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """LoRA pairs by module name, and the trained head by parameter name. An absent module has no entry.

    `residual` acts beside the pairs and is never trained: what FLoRA and FedEx-LoRA add to the base, in pairs of scale
    1. `prototypes` are the global adapters of smaller ranks, where every rank has its own (HeLoRA-KD); none of them
    has prototypes itself.
    """

    pairs: Mapping[str, LoraPair]  # by module name
    head: Mapping[str, Tensor] = field(default_factory=dict)  # by parameter name
    residual: Mapping[str, LoraPair] = field(default_factory=dict)  # by module name
    prototypes: Mapping[int, "Adapter"] = field(default_factory=dict)  # by rank

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under one flat name: `<module>.lora_A`, `<module>.lora_B`, `head.<parameter>`,
        `<module>.residual_A`, `<module>.residual_B`; those of a prototype have `prototype.<rank>.` before.
        """
        flat = {f"head.{name}": value for name, value in self.head.items()}
        for name, pair in self.pairs.items():
            flat[f"{name}.lora_A"], flat[f"{name}.lora_B"] = pair.A, pair.B
        for name, pair in self.residual.items():
            flat[f"{name}.residual_A"], flat[f"{name}.residual_B"] = pair.A, pair.B
        for rank, prototype in self.prototypes.items():
            flat |= {f"prototype.{rank}.{name}": value for name, value in prototype.tensors().items()}
        return flat

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, as they would travel."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """One adapted linear module: its weight maps d_in to d_out; `layer` is its column in an allocation."""

    name: str
    layer: int
    d_in: int
    d_out: int


@dataclass(frozen=True)
class AdapterSpec:
    """The shape of the global adapter: its modules in the model's order, its layers, its rank and scale."""

    modules: tuple[ModuleSpec, ...]  # in the model's order
    layers: tuple[str, ...]  # a layer is a transformer block, named like "encoder.layer.3"
    max_rank: int  # of the bank, the server's global pairs
    scale: float  # alpha / rank, the same for every rank

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @cached_property
    def layer_of(self) -> Mapping[str, int]:
        """The column of each module's layer."""
        return {module.name: module.layer for module in self.modules}


@dataclass(frozen=True, slots=True)
class Budget:
    """What a client can afford to train: layers, and rank components in each of them (None = no limit).

    `memory_bytes` is what training may take beyond the interpreter and its libraries: base weights, adapter, gradients,
    optimizer, activations.
    """

    layers: int | Fraction | None = None  # how many; as a Fraction a share of the model's
    rank: int | tuple[int, ...] | None = None  # one number for every layer, or one per layer
    memory_bytes: int | None = None
    seconds: float | None = None  # of local training, per round
    uplink_bytes: int | None = None  # per round

    def capacity(self, num_layers: int) -> int:
        """How many of `num_layers` layers this budget allows. A share is rounded, and at least one layer."""
        if isinstance(self.layers, Fraction):
            return max(1, math.floor(self.layers * num_layers + Fraction(1, 2)))
        return num_layers if self.layers is None else max(0, min(self.layers, num_layers))

    def ranks(self, num_layers: int, max_rank: int) -> npt.NDArray[np.int64]:
        """How many rank components of each layer this budget allows, (layers,).

        Raises:
            InputError: it has one rank per layer, but of another number of layers.
        """
        limit = max_rank if self.rank is None else self.rank
        if isinstance(limit, tuple) and len(limit) != num_layers:
            raise InputError(f"a group of fleet.ranks has {len(limit)} ranks for {num_layers} layers: give one each")
        ranks: npt.NDArray[np.int64] = np.clip(np.broadcast_to(np.asarray(limit), num_layers), 0, max_rank)
        return ranks

    def trains(self, num_layers: int, max_rank: int) -> bool:
        """True if this budget allows to train anything at all."""
        return self.capacity(num_layers) > 0 and bool(self.ranks(num_layers, max_rank).any())


@dataclass(frozen=True, slots=True)
class ClientProfile:
    """A client as the server knows it. `id` names its part of the data, never a network node."""

    id: int
    num_examples: int  # that it trains on
    budget: Budget = Budget()
    speed: float | None = None  # floating point operations per second of its training; None = not known
    link: float | None = None  # bytes per second, each way; None = not known
    availability: float = 1.0  # probability that it can be reached in a round


@dataclass(frozen=True, slots=True, eq=False)
class Allocation:
    """Who trains what: a boolean mask over clients × layers × rank components; its row sums are the ranks."""

    clients: tuple[int, ...]  # ids, in the order of the mask's rows
    mask: Mask  # (clients, layers, max_rank)

    @staticmethod
    def of_layers(clients: tuple[int, ...], rows: Mask, max_rank: int) -> "Allocation":
        """Whole layers on or off: `rows` is (clients, layers)."""
        return Allocation(clients, np.repeat(rows.astype(bool)[:, :, None], max_rank, axis=2))

    def row(self, client: int) -> Mask:
        """The client's part of the mask, (layers, max_rank)."""
        row: Mask = self.mask[self.clients.index(client)]
        return row

    @property
    def ranks(self) -> npt.NDArray[np.int64]:
        """Trained rank per client and layer, (clients, layers); 0 = frozen there."""
        ranks: npt.NDArray[np.int64] = self.mask.sum(axis=2, dtype=np.int64)
        return ranks

    def check(self, profiles: tuple[ClientProfile, ...], spec: AdapterSpec) -> None:
        """Raise InputError unless this is one row per profile, of the right shape, within every budget."""
        shape = (len(profiles), spec.num_layers, spec.max_rank)
        if self.clients != tuple(p.id for p in profiles) or self.mask.shape != shape or self.mask.dtype != bool:
            raise InputError(
                f"the allocator returned a mask {self.mask.shape} {self.mask.dtype}, expected bool {shape}"
            )
        for profile, ranks in zip(profiles, self.ranks, strict=True):
            capacity = profile.budget.capacity(spec.num_layers)
            if np.count_nonzero(ranks) > capacity:
                raise InputError(
                    f"the allocator gave client {profile.id} {np.count_nonzero(ranks)} layers, "
                    f"but its budget is {capacity}"
                )
            allowed = profile.budget.ranks(spec.num_layers, spec.max_rank)
            for layer in np.flatnonzero(ranks > allowed)[:1]:
                raise InputError(
                    f"the allocator gave client {profile.id} rank {ranks[layer]} in layer {layer}, "
                    f"but its budget there is {allowed[layer]}"
                )


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Local training of one client in one round."""

    lr: float = 1e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.0  # of sgd
    weight_decay: float = 0.01  # torch's default for AdamW
    batch_size: int = 16  # examples per step
    epochs: int = 1
    steps: int | None = None  # optimizer updates; replaces `epochs` where given
    same_batches: bool = False  # every epoch has the batches of the first, in another order
    clip_norm: float | None = None  # largest L2 norm of all trained gradients together
    precision: Precision = "auto"  # auto: bf16 autocast where the device has it
    # HetLoRA (arXiv 2401.06432) adds λ Σ_modules ‖B[:, q:]‖_F ‖A[q:]‖_F to the loss, with q = max(min_rank, ⌊γ rank⌋).
    # A client where that sum is smaller after training than before reports q as its rank.
    tail_penalty: float = 0.0  # λ of HetLoRA; 0 = no penalty, no report
    tail_share: float = 0.99  # γ of HetLoRA
    min_rank: int = 1  # below which no client prunes itself; the published runs have 5

    def __post_init__(self) -> None:
        for name in ("lr", "batch_size", "epochs", "steps", "clip_norm", "min_rank"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be greater than 0, not {value}")
        for name in ("momentum", "weight_decay", "tail_penalty"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, but it is {getattr(self, name)}")
        if not 0 <= self.tail_share < 1:
            raise ValueError(f"tail_share must be in [0, 1), not {self.tail_share}")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError("momentum is a setting of optimizer = 'sgd'; AdamW has its own")


@dataclass(frozen=True, slots=True)
class Policy:
    """How a client trains its row within its memory. All but `int8_activations` and `bf16` leave the gradients as they
    are, up to the order of sums.

    Attributes:
        recompute: blocks that keep only their input, and are run again in backward: `frozen` those that train
            nothing, above the shallowest that trains; `all` those that train, too
        int8_activations: what backward needs is kept as int8, in groups with a scale each
        bf16: bfloat16 autocast
        micro_batch: examples in one forward and backward pass; None = the whole batch. The step is the same
        prefix_cache: where the output of the blocks below the shallowest trained one is kept, batch by batch, for
            when the batch comes again; that takes `TrainSettings.same_batches`
        prefix_cache_bytes: what the cache may take; what does not fit is computed again. None = no limit
        fold: frozen rank components are added to a copy of their weight, which costs memory; False: they are
            kept beside it, which costs time
    """

    recompute: Recompute = "none"
    int8_activations: bool = False
    bf16: bool = False
    micro_batch: int | None = None
    prefix_cache: Literal["none", "memory", "disk"] = "none"
    prefix_cache_bytes: int | None = None
    fold: bool = True

    @property
    def in_words(self) -> str:
        """What is done, such as "recompute_frozen, micro_batch 4"; "plain" for nothing."""
        parts = [f"recompute_{self.recompute}"] if self.recompute != "none" else []
        parts += [name for name in ("int8_activations", "bf16") if getattr(self, name)]
        parts += [] if self.micro_batch is None else [f"micro_batch {self.micro_batch}"]
        parts += [f"prefix_cache ({self.prefix_cache})"] if self.prefix_cache != "none" else []
        return ", ".join(parts + ["beside"] * (not self.fold)) or "plain"


@dataclass(frozen=True, slots=True, eq=False)
class ClientTask:
    """All that one client needs for one round, and nothing of other clients.

    A pair of `adapter` has every rank component of the bank, or only those that the client trains.
    """

    round: int
    client: int
    seed: int  # of this task alone
    adapter: Adapter  # as dispatched
    trained: Mask  # (layers, max_rank): the client's row of the allocation
    train: TrainSettings
    head: HeadPolicy = "aggregate"
    report_layer_scores: bool = False
    factors: Factors = "both"  # which it trains
    bypass: bool = False  # blocks with nothing to train are left out of the client's model
    policy: Policy = Policy()
    spare_bytes: int | None = None  # of the client's budget, beyond what it is predicted to hold; None: none promised

    def __post_init__(self) -> None:
        if self.policy.prefix_cache != "none" and not self.train.same_batches:
            raise InputError("a prefix cache needs train.same_batches = true: no batch comes twice without it")


@dataclass(frozen=True, slots=True, eq=False)
class ClientUpdate:
    """What a client returns: the trained values of the components in its row, and of the head."""

    round: int
    client: int
    num_examples: int
    adapter: Adapter  # what the client trained, and nothing else
    metrics: Mapping[str, float] = field(default_factory=dict)  # loss, steps, seconds
    layer_scores: Tensor | None = None  # (layers,): mean squared gradient norm; nan where not trained
    num_tokens: int | None = None  # supervised tokens among its data; language models only
    rank: int | None = None  # what it wants to train from now on, at most what it had (HetLoRA); None = as before

    @property
    def weight(self) -> float:
        """n_i of the papers: examples, or supervised tokens where there are tokens to predict."""
        return float(self.num_examples if self.num_tokens is None else self.num_tokens)


@dataclass(frozen=True, slots=True)
class ClientFailure:
    """A client without a usable update: `rejected` it answered badly or raised, `missing` it did not answer."""

    client: int
    kind: Literal["missing", "rejected"]
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class ServerState:
    """All that the next round depends on: the checkpoint. Resume is: load it and go on, bit for bit."""

    round: int  # the next round to run
    adapter: Adapter
    memory: Memory = field(default_factory=dict)
    reports: Mapping[int, Tensor] = field(default_factory=dict)  # last round's layer scores by client, (layers,)
    private: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)  # simulated clients' own tensors, flat
    reported_ranks: Mapping[int, int] = field(default_factory=dict)  # last round's `ClientUpdate.rank` by client


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """One try of a round: who was asked, whose updates were usable, who failed and why, what travelled."""

    cohort: tuple[int, ...]
    updated: tuple[int, ...]
    missing: Mapping[int, str]
    rejected: Mapping[int, str]
    downlink_bytes: Mapping[int, int]
    uplink_bytes: Mapping[int, int]  # of every answer that arrived, rejected ones too
    simulated_seconds: float | None = None  # how long it took the simulated devices; None = not known
    dropped: Mapping[int, Sequence[str]] = field(default_factory=dict)  # why answers did not count, by who sent them


@dataclass(frozen=True, slots=True, eq=False)
class RoundReport:
    """What a log line, a plot or a test needs to know of a finished round; `state` is the state after it.

    `attempts` ends with the one that counted; `allocation` and `client_metrics` are of that one.
    """

    round: int
    state: ServerState
    allocation: Allocation
    client_metrics: Mapping[int, Mapping[str, float]]
    attempts: tuple[Attempt, ...]
    aggregation_error: float | None = None  # of a mean of factors against the exact mean of products
    policies: Mapping[int, Policy] = field(default_factory=dict)  # of the clients that were asked to train

    @property
    def counted(self) -> Attempt:
        return self.attempts[-1]

    @property
    def downlink_bytes(self) -> int:
        """Bytes sent to clients, in all attempts."""
        return sum(sum(attempt.downlink_bytes.values()) for attempt in self.attempts)

    @property
    def uplink_bytes(self) -> int:
        """Bytes that clients sent, in all attempts."""
        return sum(sum(attempt.uplink_bytes.values()) for attempt in self.attempts)

    @property
    def simulated_seconds(self) -> float | None:
        """How long all attempts took the simulated devices; None = not known."""
        known = [attempt.simulated_seconds for attempt in self.attempts if attempt.simulated_seconds is not None]
        return sum(known) if len(known) == len(self.attempts) else None
