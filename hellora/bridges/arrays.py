"""Read somebody's named arrays as an adapter: LoRA factors by their names, as PEFT writes them, and the rest as head.

    <module>.lora_A.<…>   (rank, d_in)        <module>.lora_B.<…>   (d_out, rank)

A layer is the block that a module is in: its name up to the first number. Layers are in the order of the arrays.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hellora.backends.wire import unflatten
from hellora.core.errors import InputError
from hellora.core.types import Adapter, AdapterSpec, LoraPair, ModuleSpec
from hellora.model.targets import NUMBERED

FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<factor>[AB])(?:\..+)?$")


@dataclass(frozen=True, eq=False)
class Naming:
    """A naming knows what somebody's arrays are called here, and the shape of the adapter that they are."""

    spec: AdapterSpec
    theirs: Mapping[str, str]  # their names, by ours: see `Adapter.tensors`

    @staticmethod
    def of(arrays: Mapping[str, Tensor]) -> "Naming":
        """Name arrays, in the order of the model.

        Raises:
            InputError: there is no pair among them, one is incomplete or in no numbered block, ranks differ, or a
                number is no float32.
        """
        theirs = {our_name(name): name for name in arrays}
        flat = {ours: arrays[name] for ours, name in theirs.items()}
        if wrong := [theirs[ours] for ours, tensor in flat.items() if tensor.dtype != torch.float32]:
            raise InputError(f"array {wrong[0]} is {arrays[wrong[0]].dtype}: send what is trained, as float32")
        pairs = {module: pair_of(module, flat, theirs) for module in modules_of(flat)}
        if not pairs:
            raise InputError("the arrays have no LoRA pair: name their factors as PEFT does, …lora_A… and …lora_B…")
        return Naming(spec_of(pairs), theirs)

    def adapter(self, arrays: Mapping[str, Tensor]) -> Adapter:
        """Return all arrays as an adapter. Raise KeyError where one is absent."""
        flat = {ours: arrays[name] for ours, name in self.theirs.items()}
        return unflatten(flat, dict.fromkeys(self.spec.layer_of, self.spec.scale))

    def arrays(self, adapter: Adapter) -> dict[str, Tensor]:
        """Return an adapter, or a part of one, under their names and in their order."""
        flat = adapter.tensors()
        return {name: flat[ours].contiguous() for ours, name in self.theirs.items() if ours in flat}


def our_name(name: str) -> str:
    found = FACTOR.match(name)
    return f"{found['module']}.lora_{found['factor']}" if found else f"head.{name}"


def modules_of(flat: Mapping[str, Tensor]) -> list[str]:
    """Return the modules of which there is a factor, each once, in their order."""
    factors = [name for name in flat if not name.startswith("head.")]
    return list(dict.fromkeys(name.rpartition(".")[0] for name in factors))


def pair_of(module: str, flat: Mapping[str, Tensor], theirs: Mapping[str, str]) -> LoraPair:
    """Return the two factors of a module. Raise InputError where they are none."""
    names = [f"{module}.lora_{factor}" for factor in "AB"]
    for name, other in zip(names, reversed(names), strict=True):
        if name not in flat:
            raise InputError(f"the arrays have {theirs[other]}, and not the other factor of it: send both")
    try:
        return LoraPair(flat[names[0]], flat[names[1]], 1.0)
    except ValueError as error:
        raise InputError(f"{theirs[names[0]]} and its other factor are no LoRA pair: {error}") from error


def spec_of(pairs: Mapping[str, LoraPair]) -> AdapterSpec:
    """Return the shape of the adapter of these pairs, by module. Their scale is not known here, and cancels out."""
    blocks: dict[str, str] = {}
    for module in pairs:
        if (found := NUMBERED.match(f"{module}.")) is None:
            raise InputError(
                f"{module} is in no numbered block, which is what clients train or leave out: do not adapt it"
            )
        blocks[module] = found[1]
    if len(ranks := sorted({pair.rank for pair in pairs.values()})) > 1:
        raise InputError(f"the pairs have ranks {', '.join(map(str, ranks))}: give all of the server's the same")
    layers = tuple(dict.fromkeys(blocks.values()))
    modules = tuple(
        ModuleSpec(module, layers.index(blocks[module]), pair.A.shape[1], pair.B.shape[0])
        for module, pair in pairs.items()
    )
    return AdapterSpec(modules, layers, ranks[0], 1.0)
