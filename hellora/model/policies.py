"""A policy (`exchange.Policy`) fits training into a client's memory: it decides what is kept for backward, and how.

To run blocks again in backward is due to Chen et al., arXiv 1604.06174; to keep activations in few bits, rounded at
random, to ActNN (Chen et al., arXiv 2104.14129) and GACT (Liu et al., arXiv 2206.11357).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from hellora.core.types import Mask

GROUP = 64  # elements that share a scale
SMALLEST = 1024  # elements; a smaller tensor is kept as it is
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


# ------------------------------------------------------------------------------------------------------- fewer at once


def micro_batches(indices: npt.NDArray[np.int64], size: int | None) -> list[npt.NDArray[np.int64]]:
    """Cut a batch's indices into parts of `size` examples, the last one of what is left; None = one part."""
    return [indices] if size is None else [indices[i : i + size] for i in range(0, len(indices), size)]


# ---------------------------------------------------------------------------------------------------------- run again


def recomputed_layers(how: Literal["none", "frozen", "all"], trained: Mask, below: bool = False) -> list[int]:
    """Return the layers that keep only their input; `trained` is the client's row, (layers, max_rank).

    None of them lies below the shallowest trained layer, where autograd keeps nothing anyway, unless something `below`
    all layers trains.
    """
    trains = [bool(row.any()) for row in trained]
    if how == "none" or not (below or any(trains)):
        return []
    return [j for j in range(0 if below else trains.index(True), len(trains)) if how == "all" or not trains[j]]


@contextmanager
def recomputing(net: nn.Module, blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Make each of these blocks of `net` keep only its input while entered, and be run again in backward.

    Caches of keys and values, which a block would fill twice, are switched off. Each side of an encoder-decoder may
    have a config of its own.
    """
    configs: list[Any] = [getattr(module, "config", None) for module in (net.modules() if blocks else ())]
    caching = list({id(config): config for config in configs if getattr(config, "use_cache", False)}.values())
    try:
        for config in caching:
            config.use_cache = False
        with forward_replaced(blocks, lambda block: run_again_in_backward(block.forward)):
            yield
    finally:
        for config in caching:
            config.use_cache = True


@contextmanager
def forward_replaced(modules: Sequence[nn.Module], by: Callable[[Any], Callable[..., Any]]) -> Iterator[None]:
    """Make these modules compute `by(module)` while entered; their hooks run as ever."""
    own = [vars(module).get("forward") for module in modules]  # some libraries set one; most modules have their class's
    try:
        for module in modules:
            module.forward = by(module)
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward


def run_again_in_backward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function, checkpointed: dropout draws the same numbers again, and autocast is as it was.

    Tensors that came by name are handed over by position: only those does torch keep as it keeps other activations.
    """

    def checkpointed(*rest: Any, **named: Any) -> Any:
        others = {name: value for name, value in named.items() if not isinstance(value, Tensor)}
        names = [name for name in named if name not in others]
        count = len(rest)  # what `run` refers to stays in memory, so it must refer to no activation

        def run(*values: Any) -> Any:
            return forward(*values[:count], **dict(zip(names, values[count:], strict=True)), **others)

        return checkpoint(run, *rest, *(named[name] for name in names), use_reentrant=False)

    return checkpointed


# ------------------------------------------------------------------------------------------------------- kept as int8


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Packed:
    """Packed numbers are int8 with a float32 scale for each group of them: each number takes 1.06 bytes."""

    values: Tensor  # (groups, GROUP), int8
    scales: Tensor  # (groups, 1), float32: the group's largest magnitude over 127

    @staticmethod
    def of(flat: Tensor, generator: torch.Generator) -> "Packed | None":
        """Round `flat` (count,) up or down at random such that its expectation is exact; None if one is not finite.

        Each number is off by less than its group's scale.
        """
        short = -len(flat) % GROUP
        groups = (nn.functional.pad(flat, (0, short)) if short else flat).view(-1, GROUP).float()
        # Not `groups.abs().amax()`: that is one more copy of what there is no memory for.
        largest = torch.maximum(groups.amax(1, keepdim=True), -groups.amin(1, keepdim=True))
        if bool((~largest.isfinite()).any()):
            return None
        scales = (largest / 127).clamp_(min=torch.finfo(torch.float32).tiny)  # a group of zeros is divided by it, too
        rounded = (groups / scales).add_(rounding_noise(len(groups), generator)).round_()  # -128 to 127
        return Packed(rounded.to(torch.int8), scales)

    def unpacked(self) -> Tensor:
        """Return the numbers in float32, (groups · GROUP,)."""
        return (self.values * self.scales).view(-1)


def rounding_noise(groups: int, generator: torch.Generator) -> Tensor:
    """Draw numbers uniform in ±1/2, (groups, GROUP), of 16 random bits each: to draw floats would take longer than all
    the rest."""
    bits = torch.empty(groups * GROUP // 4, dtype=torch.int64, device=generator.device)
    return bits.random_(-(2**63), None, generator=generator).view(torch.int16).view(-1, GROUP) * 2.0**-16


@contextmanager
def int8_activations(generator: torch.Generator) -> Iterator[None]:
    """Make autograd keep the activations of a forward pass as `Packed` while entered; `generator` rounds them.

    What several operations keep of one storage is packed once.
    """
    # Of weak values, for each saved tensor refers to `pack`: else none would go before the last one does. A weak
    # reference to a storage keeps its address taken.
    known: WeakValueDictionary[tuple[StorageWeakRef, int, int, int], Packed] = WeakValueDictionary()

    def pack(tensor: Tensor) -> Any:
        # Asked before `detach`, which forgets where a tensor came from. What is kept must have forgotten it: else it
        # would hold the graph that holds it.
        activation, tensor = is_activation(tensor), tensor.detach()
        if not activation:
            return tensor
        flat = in_memory_order(tensor)
        if flat is None:
            tensor = tensor.contiguous()
            flat = tensor.view(-1)
        storage = StorageWeakRef(flat.untyped_storage())  # type: ignore[no-untyped-call]
        # With the version: what is written into a tensor after it was packed makes another one of it.
        key = (storage, tensor._version, int(flat.storage_offset()), len(flat))
        packed = known.get(key) or Packed.of(flat, generator)
        if packed is None:
            return tensor
        known[key] = packed
        return packed, tensor.shape, tensor.stride(), tensor.dtype

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        packed, shape, stride, dtype = kept  # the strides, too: kernels of backward are chosen by them
        tensor: Tensor = packed.unpacked().as_strided(shape, stride).to(dtype)
        return tensor

    with saved_tensors_hooks(pack, unpack):
        yield


def is_activation(tensor: Tensor) -> bool:
    """Return True for a float tensor that depends on what is trained, and on more than one parameter alone.

    So masks, tables of positions, frozen weights and their casts are none; nor are a trained parameter, its views, its
    casts. Logarithms of probabilities stay exact, too: backward exponentiates them, which makes much of a small error.
    """
    node: Node | None = tensor.grad_fn
    if node is None or tensor.numel() < SMALLEST or not tensor.is_floating_point():
        return False
    if node.name() == "LogSoftmaxBackward0":
        return False
    while node is not None and len(node.next_functions) == 1:  # casts and views come of one tensor alone
        node = node.next_functions[0][0]
    return node is not None and bool(node.next_functions)  # the node of a parameter itself comes after no other


def in_memory_order(tensor: Tensor) -> Tensor | None:
    """Return a view (count,) of the tensor's part of its storage, or None where that has holes or overlaps."""
    ordered = tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
    return ordered.view(-1) if ordered.is_contiguous() else None


# ---------------------------------------------------------------------------------------------------------- bfloat16


def recasting(net: nn.Module) -> AbstractContextManager[None]:
    """Keep no cast of a frozen linear weight of `net` for backward while entered.

    Autocast would keep one of each weight above the shallowest trained layer: for few examples that is more than it
    saves.
    """
    # Of this very class: one derived from it, such as a quantised one, computes something else.
    frozen = [m for m in net.modules() if type(m) is nn.Linear and not m.weight.requires_grad]
    apply: Callable[..., Any] = RecastLinear.apply
    return forward_replaced(frozen, lambda m: lambda input: apply(input, m.weight, m.bias))


class RecastLinear(torch.autograd.Function):
    """RecastLinear computes torch.nn.functional.linear of a frozen weight and bias; backward casts the weight anew."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return (gradient @ weight.to(gradient.dtype)).to(ctx.dtype), None, None


# --------------------------------------------------------------------------------------------------- frozen statistics


def with_frozen_statistics(net: nn.Module) -> AbstractContextManager[None]:
    """Make BatchNorm in eval mode compute y = scale · x + shift by itself while entered.

    That needs nothing of x for backward; and torch's own kernel gives wrong gradients on a CPU to a batch of one whose
    channels come last on one side only (seen in 2.13).
    """
    frozen = [m for m in net.modules() if type(m) in NORMS and m.running_var is not None and not m.training]
    return forward_replaced(frozen, lambda m: lambda input: normalised(m, input))


def normalised(norm: Any, x: Tensor) -> Tensor:
    """Return what BatchNorm makes of x (batch, channels, …) in eval mode."""
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale if norm.bias is None else norm.bias - norm.running_mean * scale
    by_channel = (-1, *[1] * (x.ndim - 2))
    y: Tensor = x * scale.to(x.dtype).view(by_channel) + shift.to(x.dtype).view(by_channel)
    return y
