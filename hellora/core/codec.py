"""Encode numbers as they travel: fp32 stays as it is, bf16 is rounded to nearest, int8 at random without bias.

    scale = 2^⌈log2(max |x| / 127)⌉        q = ⌊x / scale + u⌋, u uniform in [0, 1)        x̂ = scale · q
    E x̂ = x        |x̂ − x| < scale < 2 max |x| / 127        a slice of zeros stays zeros

int8 has one float32 scale for each row of a matrix, or for each column where these are fewer: for each rank component
of A and of B alike. (A scale for each row of B, of few numbers each, would take more bytes than the numbers.) A vector
is one row. Scales are powers of two, so that scale · q is exact and what was decoded is encoded to itself. bf16 is off
by at most 2^-8 of each number. Only float32 tensors are rounded.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from hellora.core.exchange import TensorSpec, WireFormat
from hellora.core.seeds import seed_for

LARGEST = 127  # of int8, on both sides
SMALLEST = -126  # exponent of the smallest scale, the smallest normal float32
NUMBER_BYTES: Mapping[WireFormat, int] = {"fp32": 4, "bf16": 2, "int8": 1}
SCALE_BYTES: Mapping[WireFormat, int] = {"fp32": 0, "bf16": 0, "int8": 4}
Way = Literal["down", "up"]  # to a client, or from it
BF16, INT8, SCALES = "/bf16/", "/int8/", "/scales"  # how rounded tensors are named


def wire_bytes(tensors: Iterable[TensorSpec], format: WireFormat) -> int:
    """Count the bytes of tensors as they travel, without names and shapes."""
    total = 0
    for tensor in tensors:
        numbers: int = math.prod(tensor.shape)
        if tensor.dtype == torch.float32 and numbers:
            total += numbers * NUMBER_BYTES[format] + num_scales(tensor.shape) * SCALE_BYTES[format]
        else:
            total += tensor.num_bytes
    return total


def is_rounded(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.numel() > 0


def num_scales(shape: Sequence[int]) -> int:
    """Count the scales of a tensor in int8: one for each row of a matrix, or for each column where these are fewer."""
    return 1 if len(shape) < 2 else min(shape[0], math.prod(shape[1:]))


def as_matrix(tensor: Tensor) -> Tensor:
    """View a tensor as a matrix; a vector is one row."""
    return tensor.reshape(1, -1) if tensor.ndim < 2 else tensor.flatten(1)


def as_slices(tensor: Tensor) -> Tensor:
    """View a tensor as (scales, numbers): the rows of a matrix, or its columns where these are fewer."""
    matrix = as_matrix(tensor)
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def quantize(tensor: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return an int8 tensor of the same shape, and the float32 scale of each slice.

    A slice with nan or inf comes back as such, so that whoever receives it finds out.
    """
    slices = as_slices(tensor.double())
    largest = slices.abs().amax(dim=1, keepdim=True)
    mantissa, exponent = torch.frexp(largest)
    exponent = exponent - 7 + (mantissa > LARGEST / 128).int()
    scale = torch.ldexp(torch.ones_like(largest), exponent.clamp(min=SMALLEST))
    finite = largest.isfinite()
    u = torch.rand(slices.shape, generator=generator)  # of 24 bits, so that the sum is exact
    q = torch.where(finite, (slices / scale + u).floor(), 1.0).to(torch.int8)
    rounded = torch.empty(tensor.shape, dtype=torch.int8)
    as_slices(rounded).copy_(q)
    return rounded, torch.where(finite, scale, largest).flatten().float()


def dequantize(q: Tensor, scales: Tensor) -> Tensor:
    """Undo `quantize`, in float32."""
    numbers = q.float()
    as_slices(numbers).mul_(scales[:, None])
    return numbers


def encode(tensors: Mapping[str, Tensor], format: WireFormat, seed: int, way: Way = "down") -> dict[str, Tensor]:
    """Return tensors by name as they travel: a rounded one has the format in its name; all scales are one tensor.

    Each tensor is rounded by numbers of its own, on each way: what a client trained from a task must not be rounded as
    the task was.
    """
    if format == "fp32":
        return dict(tensors)
    plain = {name: tensor for name, tensor in tensors.items() if not is_rounded(tensor)}
    rounded = {name: tensor for name, tensor in tensors.items() if is_rounded(tensor)}
    if format == "bf16":
        return plain | {f"{BF16}{name}": tensor.bfloat16() for name, tensor in rounded.items()}
    scales = []
    for name in sorted(rounded):
        generator = torch.Generator().manual_seed(seed_for(seed, "wire", way, name))
        plain[f"{INT8}{name}"], scale = quantize(rounded[name], generator)
        scales.append(scale)
    return plain | {SCALES: torch.cat([torch.zeros(0), *scales])}


def decode(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `encode`, up to rounding; the names say what is what.

    Raises:
        ValueError: a number is of another type than its name says, or the scales are not as many as there must be.
    """
    decoded = {}
    named_int8 = sorted(name for name in tensors if name.startswith(INT8))
    counts = [num_scales(tensors[name].shape) for name in named_int8]
    scales = tensors.get(SCALES, torch.zeros(0))
    if scales.shape != (sum(counts),) or scales.dtype != torch.float32:
        raise ValueError(f"{scales.dtype} {tuple(scales.shape)} are not the {sum(counts)} scales of its tensors")
    for name, scale in zip(named_int8, torch.split(scales, counts), strict=True):
        if tensors[name].dtype != torch.int8:
            raise ValueError(f"{name} is {tensors[name].dtype}")
        decoded[name.removeprefix(INT8)] = dequantize(tensors[name], scale)
    for name, tensor in tensors.items():
        if name.startswith(BF16):
            if tensor.dtype != torch.bfloat16:
                raise ValueError(f"{name} is {tensor.dtype}")
            decoded[name.removeprefix(BF16)] = tensor.float()
        elif not name.startswith(INT8) and name != SCALES:
            decoded[name] = tensor
    return decoded
