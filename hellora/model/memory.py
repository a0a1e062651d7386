"""What training really holds in memory, measured: on CUDA by torch's allocator, on Linux by the kernel.

On the CPU a process keeps much of what it frees: with glibc's defaults the resident memory of training peaks 20 to 80 %
above what tensors hold. `release_at_once` makes it give every larger block back, at a cost of 1 to 2 % in time
(benchmarks/README.md); then resident memory follows the tensors to within 1 %. Pages of files are left out: they are
code of libraries, mapped when it first runs, and weights, which are counted anyway.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

MMAP_THRESHOLD = 16 * 1024  # bytes; a larger block is mapped by itself, and unmapped when it is freed
M_MMAP_THRESHOLD = -3  # of mallopt(3)
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@cache
def glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt, library.malloc_trim  # noqa: B018  AttributeError where it is another
        return library
    return None


def release_at_once() -> None:
    """Make this process return larger blocks to the system when they are freed. Does nothing without glibc."""
    if (library := glibc()) is not None:
        library.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)


@dataclass
class Peak:
    """The most bytes held above what was held at first; None where it cannot be measured."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the most memory that is held while this lasts, above what is held when it begins."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    begun = begin_resident()
    files = 0 if begun is None else resident("RssFile")
    yield peak
    if begun is not None and device.type == "cpu":
        peak.bytes = max(0, resident("VmHWM") - begun - max(0, resident("RssFile") - files))


def begin_resident() -> int | None:
    """Forget the peak of this process's resident memory; its resident bytes, or None where the system cannot tell."""
    if (library := glibc()) is None:
        return None
    library.malloc_trim(0)
    try:
        CLEAR.write_text("5")  # proc(5): resets the peak
        return resident("VmRSS")
    except OSError:
        return None


def resident(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def weights_bytes(*modules: nn.Module | None) -> int:
    """Bytes of all parameters and buffers, those that are tied once."""
    tensors = [t for module in modules if module is not None for t in (*module.parameters(), *module.buffers())]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())
