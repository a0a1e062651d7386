"""Trace one training step without values. Fake tensors have shapes, a device and a lifetime but no memory, so the
bytes that a step would hold at any moment can be counted, block by block, for a model of any size in a fraction of a
second. The same count of a step with values (`HeldBytes`) is what the allocator holds, to the byte.

    enter_j         bytes held when block j begins, since the step began
    keep_j          what block j adds to them, enter_{j+1} − enter_j
    forward_j       the most that is held while block j runs, less enter_j
    head            the most from there on until there is a loss, less enter_L
    leave_j         bytes held when the gradient has come down to the output of block j
    release_j       what its way through block j takes away from them, leave_j − leave_{j−1}
    backward_j      the most that is held on that way, less leave_{j−1}
    head_backward   the most until the gradient comes to the last block, less leave_{L−1}
    end             bytes held when the gradient is everywhere: leave_{j−1} where block j is the shallowest that trains

What a block keeps for its gradient is counted twice, as `keep` and as `release`. They differ by what only the caller of
the blocks holds on to: some models keep the embeddings in a variable until the last block is done.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hellora.model.resident import BaseModel
from hellora.model.stand_ins import Bypass

aten, DEVICE = torch.ops.aten, torch.ops.prim.device.default
Bytes = npt.NDArray[np.float64]


class HeldBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """This mode counts the bytes of all storages that come to be under it, while they live, as an allocator holds them.

    `peaks` has the most for each value that `phase` took. Operations that need a value which a fake tensor has not get
    one: a number is 0, and a boolean index selects everything.
    """

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = 0
        self.phase: Any = None
        self.before_next: Callable[[], None] | None = None  # called once, before the next storage comes to be
        self.peaks: dict[Any, int] = {}
        self.sizes: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def enter_phase(self, phase: Any) -> None:
        self.phase = phase
        self.peaks[phase] = max(self.peaks.get(phase, self.held), self.held)

    @property
    def peak(self) -> int:
        return max(self.peaks.values(), default=self.held)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # asked for so often that the way through the mode would take half of the time
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 0
        if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default) and isinstance(
            args[0], FakeTensor
        ):
            args = (args[0], everything_of(args[1]), *args[2:])
        if func is aten._unsafe_view.default and isinstance(args[0], FakeTensor):
            func = aten.view.default  # the same storage; fake tensors find it four times as fast
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return result

    def count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            if self.before_next is not None:
                self.before_next()
                self.before_next = None
            self.sizes[key] = storage.nbytes()
            self.held += storage.nbytes()
            self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.held)
            weakref.finalize(storage, self.forget, key)

    def forget(self, key: int) -> None:
        self.held -= self.sizes.pop(key)


def everything_of(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Let each boolean index select all, as numbers: what a mask selects is not known without values."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            found += [index.new_empty(index.numel(), dtype=torch.long) for _ in range(index.ndim)]
        else:
            found.append(index)
    return found


class FusedAttention(torch.autograd.Function):
    """Every fused attention kernel keeps its inputs, its output, and one number per query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, tokens, _ = query.shape
        out = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, mask, out, query.new_empty(batch, heads, tokens, dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value = ctx.saved_tensors[:3]
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


@contextmanager
def kernels_of(device: str) -> Iterator[None]:
    """Run operations as a device of the kind "cpu" or "cuda" would, where fake tensors choose another kernel."""
    attention, dropout = F.scaled_dot_product_attention, F.dropout

    def device_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **named: Any) -> Tensor:
        named |= dict(zip(("attn_mask", "dropout_p"), args, strict=False))
        by_cpu = device == "cpu" and named.get("dropout_p", 0.0) > 0  # no fused kernel of the CPU drops out
        if not isinstance(query, FakeTensor) or query.ndim != 4 or by_cpu:
            return attention(query, key, value, **named)
        kind = query.device.type
        if torch.is_autocast_enabled(kind):
            query, key, value = (t.to(torch.get_autocast_dtype(kind)) for t in (query, key, value))
        mask = named.get("attn_mask")
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, torch.full((), -torch.inf, dtype=query.dtype, device=query.device))
        attended: Tensor = FusedAttention.apply(query, key, value, mask)  # type: ignore[no-untyped-call]
        return attended

    def fused_dropout(x: Tensor, p: float = 0.5, training: bool = True, _inplace: bool = False) -> Tensor:
        return torch.native_dropout(x, p, training)[0] if training and p else x  # its mask is boolean

    try:
        F.scaled_dot_product_attention = device_attention
        if device == "cuda":
            F.dropout = fused_dropout  # type: ignore[assignment]
        yield
    finally:
        F.scaled_dot_product_attention, F.dropout = attention, dropout


@dataclass(frozen=True, eq=False)
class StepTrace:
    """A trace says what one step held, in bytes; arrays are (layers,). See the top of this file."""

    start: int  # the most before block 0 begins
    enter: int  # when block 0 begins
    keep: Bytes
    forward: Bytes
    head: int
    release: Bytes
    backward: Bytes
    head_backward: int
    end: int
    peak: int


def trace_step(base: BaseModel, step: Callable[[], tuple[Tensor, Any]], device: str) -> StepTrace:
    """Count what a step on a base that is adapted holds: a forward pass and its backward.

    `step` runs the forward pass and returns the loss, and whatever else lives as long as its gradient is computed. All
    gradients are there before, so that they are no part of it. `device` is the kind of device whose kernels to assume
    for fake tensors: cpu or cuda.
    """
    blocks = [base.net.get_submodule(name) for name in base.spec.layers]
    left_out = [block.block[0] for block in blocks if isinstance(block, Bypass)]
    modules = [base.net, *left_out, *([] if base.head is None else [base.head])]
    weights = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    count = len(blocks)
    enter, leave = np.zeros(count + 1), np.full(count + 1, np.nan)  # leave[j + 1] is of block j
    with ExitStack() as stack:
        held = HeldBytes([*weights, *stack.enter_context(gradients_of(weights))])
        for j, block in enumerate(blocks):
            stack.enter_context(phases_of(block, j, enter, leave, held))
        stack.enter_context(kernels_of(device))
        stack.enter_context(held)
        held.enter_phase("start")
        loss, _alive = step()
        held.enter_phase("head backward")
        if loss.requires_grad:
            torch.autograd.backward(loss)
        end = held.held
    leave[np.isnan(leave)] = end  # below the shallowest trained block
    return trace_of(held, enter, leave, end)


def trace_of(held: HeldBytes, enter: Bytes, leave: Bytes, end: int) -> StepTrace:
    """Return what was held in each phase of a step, less what was held when it began; see the top of this file."""
    peaks, blocks = held.peaks, range(len(enter) - 1)
    forward = np.array([peaks["forward", j] for j in blocks])
    backward = np.array([peaks.get(("backward", j), end) for j in blocks])
    return StepTrace(
        start=peaks["start"],
        enter=int(enter[0]),
        keep=np.diff(enter),
        forward=forward - enter[:-1],
        head=int(peaks["head"] - enter[-1]),
        release=np.diff(leave),
        backward=backward - leave[:-1],
        head_backward=int(peaks["head backward"] - leave[-1]),
        end=end,
        peak=held.peak,
    )


@contextmanager
def phases_of(block: nn.Module, j: int, enter: Bytes, leave: Bytes, held: HeldBytes) -> Iterator[None]:
    """Note when block j begins and ends, forward and backward."""

    def begins(*_: Any) -> None:
        enter[j] = held.held
        held.enter_phase(("forward", j))

    def head_begins() -> None:
        enter[j + 1] = held.held
        held.enter_phase("head")

    def gradient_comes(_gradient: Tensor) -> None:
        leave[j + 1] = held.held
        held.enter_phase(("backward", j))

    def ends(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if j == len(enter) - 2:
            held.before_next = head_begins  # by then the caller has let go of what went into the block
        hidden = output if isinstance(output, Tensor) else output[0]
        if hidden.requires_grad:
            hidden.register_hook(gradient_comes)

    hooks = [block.register_forward_pre_hook(begins), block.register_forward_hook(ends)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def gradients_of(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Give each parameter that trains a gradient of 0 while this lasts."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = [torch.zeros_like(parameter) for parameter in trained]
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.grad = gradient
    try:
        yield gradients
    finally:
        for parameter in trained:
            parameter.grad = None


def without_values(module: nn.Module, mode: AbstractContextManager[Any], device: str) -> None:
    """Replace a module's parameters and buffers on `device`, by fake ones in a FakeTensorMode, else by zeros; tied ones
    stay tied."""
    fakes: dict[int, Tensor] = {}

    def fake_of(old: Tensor) -> Tensor:
        if id(old) not in fakes:
            fakes[id(old)] = torch.zeros(old.shape, dtype=old.dtype, device=device)
        return fakes[id(old)]

    with mode:
        for owner in module.modules():
            for name, parameter in owner._parameters.items():
                if parameter is not None:
                    owner._parameters[name] = nn.Parameter(fake_of(parameter), requires_grad=False)
            for name, buffer in owner._buffers.items():
                if buffer is not None:
                    owner._buffers[name] = fake_of(buffer)
