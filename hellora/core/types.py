"""These values travel through a round. All are frozen; no tensor inside is ever changed in place."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hellora.core.errors import InputError

Mask = npt.NDArray[np.bool_]
Ranks = npt.NDArray[np.int64]  # (layers,): rank components of each layer; 0 is frozen, or absent


@dataclass(frozen=True, slots=True, eq=False)
class LoraPair:
    """A pair of factors updates one module: ΔW = scale · B @ A. The scale travels with the pair."""

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
    """An adapter holds LoRA pairs by module name, and the trained head by parameter name. An absent module has no
    entry.

    `residual` acts beside the pairs and is never trained: what FLoRA and FedEx-LoRA add to the base, in pairs of scale
    1. `prototypes` are the global adapters of smaller ranks, where every rank has its own (HeLoRA-KD); none of them
    has prototypes itself.
    """

    pairs: Mapping[str, LoraPair]  # by module name
    head: Mapping[str, Tensor] = field(default_factory=dict)  # by parameter name
    residual: Mapping[str, LoraPair] = field(default_factory=dict)  # by module name
    prototypes: Mapping[int, "Adapter"] = field(default_factory=dict)  # by rank

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor under one flat name: `<module>.lora_A`, `<module>.lora_B`, `head.<parameter>`,
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
        """Count the bytes of all tensors, as they would travel."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """One linear module is adapted: its weight maps d_in to d_out; `layer` is its column in an allocation."""

    name: str
    layer: int
    d_in: int
    d_out: int


@dataclass(frozen=True)
class AdapterSpec:
    """A spec gives the shape of the global adapter: its modules in the model's order, layers, rank and scale."""

    modules: tuple[ModuleSpec, ...]  # in the model's order
    layers: tuple[str, ...]  # a layer is a transformer block, named like "encoder.layer.3"
    max_rank: int  # of the global adapter, the server's global pairs
    scale: float  # alpha / rank, the same for every rank

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @cached_property
    def layer_of(self) -> Mapping[str, int]:
        """Return the column of each module's layer."""
        return {module.name: module.layer for module in self.modules}


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget says what a client can afford to train: layers, and rank components in each of them (None = no limit).

    `memory_bytes` is what training may take beyond the interpreter and its libraries: base weights, adapter, gradients,
    optimizer, activations.
    """

    layers: int | Fraction | None = None  # how many; as a Fraction a share of the model's
    rank: int | tuple[int, ...] | None = None  # one number for every layer, or one per layer
    memory_bytes: int | None = None
    seconds: float | None = None  # of local training, per round
    uplink_bytes: int | None = None  # per round

    def capacity(self, num_layers: int) -> int:
        """Return how many of `num_layers` layers this budget allows. A share is rounded, to at least one layer."""
        if isinstance(self.layers, Fraction):
            return max(1, math.floor(self.layers * num_layers + Fraction(1, 2)))
        return num_layers if self.layers is None else max(0, min(self.layers, num_layers))

    def ranks(self, num_layers: int, max_rank: int) -> npt.NDArray[np.int64]:
        """Return how many rank components of each layer this budget allows, (layers,).

        Raises:
            InputError: it has one rank per layer, but of another number of layers.
        """
        limit = max_rank if self.rank is None else self.rank
        if isinstance(limit, tuple) and len(limit) != num_layers:
            raise InputError(f"a group of fleet.ranks has {len(limit)} ranks for {num_layers} layers: give one each")
        ranks: npt.NDArray[np.int64] = np.clip(np.broadcast_to(np.asarray(limit), num_layers), 0, max_rank)
        return ranks

    def trains(self, num_layers: int, max_rank: int) -> bool:
        """Return True if this budget allows to train anything at all."""
        return self.capacity(num_layers) > 0 and bool(self.ranks(num_layers, max_rank).any())


@dataclass(frozen=True, slots=True)
class ClientProfile:
    """A profile describes a client as the server knows it. `id` names its part of the data, never a network node."""

    id: int
    num_examples: int  # that it trains on
    budget: Budget = Budget()
    speed: float | None = None  # floating point operations per second of its training; None = not known
    link: float | None = None  # bytes per second, each way; None = not known
    availability: float = 1.0  # probability that it can be reached in a round
    num_rows: int | None = None  # that its steps are made of, where examples are packed; None = an example each


@dataclass(frozen=True, slots=True, eq=False)
class Allocation:
    """An allocation says who trains what: a mask of clients × layers × rank components; its row sums are the ranks."""

    clients: tuple[int, ...]  # ids, in the order of the mask's rows
    mask: Mask  # (clients, layers, max_rank)

    @staticmethod
    def of_layers(clients: tuple[int, ...], rows: Mask, max_rank: int) -> "Allocation":
        """Switch whole layers on or off: `rows` is (clients, layers)."""
        return Allocation(clients, np.repeat(rows.astype(bool)[:, :, None], max_rank, axis=2))

    def row(self, client: int) -> Mask:
        """Return the client's part of the mask, (layers, max_rank)."""
        row: Mask = self.mask[self.clients.index(client)]
        return row

    @property
    def ranks(self) -> npt.NDArray[np.int64]:
        """Return the trained rank per client and layer, (clients, layers); 0 = frozen there."""
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


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """A dispatcher declares with this value what a client receives of the global adapter, layer by layer."""

    ranks: Ranks  # (layers,): the rank of each pair of a layer; 0 = no pair of it is sent
    cut: bool = False  # a pair in which the client trains has only what it trains; else every component of the adapter
    bypass: bool = False  # blocks in which the client trains nothing are left out of its model
