"""What training really holds in memory, measured: on CUDA by torch's allocator, on Linux by the kernel.

On the CPU a process keeps much of what it frees: with glibc's defaults the resident memory of training peaks 20 to 80 %
above what tensors hold, and three times as high where they are few. Mapping every larger block by itself, and unmapping
it when it is freed, keeps resident memory within 1 % of the tensors, but every page of every block is then faulted in
anew: training takes 1.3 to 2 times as long. So nothing is done unless bytes are promised (`ClientTask.spare_bytes`),
and then only as much as the promise needs. `bounded_heap` lets the heap, which keeps what it frees, grow no further
than the budget spares; only what does not fit in there is mapped by itself. Whatever is kept between blocks is inside
the heap, so resident memory exceeds the tensors by what is spared, at most. The heap stays from task to task, in huge
pages where the system gives them, so that a roomy budget costs no time.

Pages of files are left out: they are code of libraries, mapped when it first runs, and weights, which are counted
anyway.
"""

import ctypes
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ALIGNED = 64  # bytes, at a multiple of which torch lets every tensor of its own begin
MAPPED = 16 * 1024  # bytes; a larger block is mapped by itself. With 64 KiB, gaps between small blocks took 3 MB
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
NEVER = -1  # no trimming
MOST_MAPPED = 32 * 2**20  # where glibc's own, moving threshold ends up in any larger process
MOST_KEPT = 2**30  # with glibc's 64 MiB, a heap that promised bytes gives its end back, and faults it in, at every step
PIECE, SMALLEST_PIECE = MOST_MAPPED - 2**12, 2**16  # of the heap, while its size is set
MOST_SPARED = 16 * 2**30  # bytes; more heap than that is not prepared
MADV_HUGEPAGE = 14  # of madvise(2)
STATUS, SMAPS, CLEAR = (Path(f"/proc/self/{name}") for name in ("status", "smaps", "clear_refs"))


class HeapInfo(ctypes.Structure):
    """`struct mallinfo2` of <malloc.h>, ten sizes; the eighth are the heap's bytes in use, the ninth the free ones."""

    _fields_ = (
        *((f"field_{i}", ctypes.c_size_t) for i in range(7)),
        ("used", ctypes.c_size_t),
        ("free", ctypes.c_size_t),
        ("_", ctypes.c_size_t),
    )


@cache
def glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc, 2.33 or newer."""
    if not sys.platform.startswith("linux"):
        return None
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt, library.malloc_trim  # noqa: B018  AttributeError where it is another
        library.mallinfo2.restype = HeapInfo
        library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
        library.free.argtypes, library.free.restype = [ctypes.c_void_p], None
        library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        return library
    return None


@contextmanager
def bounded_heap(library: ctypes.CDLL, spare: int) -> Iterator[int]:
    """Let the heap keep `spare` bytes between blocks, at most, while this lasts; what does not fit is mapped by itself.

    Yields how many resident bytes the heap keeps free from the task before; 0 where it had to give them back: what is
    left then are parts of pages, which no task can be charged for. Afterwards the C library works as fast as it did,
    and what the heap keeps is there for the next task.
    """
    library.mallopt(M_TRIM_THRESHOLD, NEVER)  # what is prepared here stays
    held: list[int] = []
    kept = 0
    if library.mallinfo2().free > spare:
        library.malloc_trim(0)
        held = occupy_holes(library, spare)
    else:
        kept = max(0, heap()[2] - int(library.mallinfo2().used))
    add_heap(library, min(spare, MOST_SPARED))
    library.mallopt(M_MMAP_THRESHOLD, MAPPED)
    try:
        yield kept
    finally:
        library.mallopt(M_MMAP_THRESHOLD, MOST_MAPPED)
        library.mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
        for block in held:
            library.free(block)


def occupy_holes(library: ctypes.CDLL, spare: int) -> list[int]:
    """Take holes that earlier work left in the heap, until `spare` bytes are free in it; untouched, so not resident."""
    library.mallopt(M_MMAP_THRESHOLD, MAPPED)
    held, size = [], PIECE
    free = library.mallinfo2().free
    while free > spare and size >= SMALLEST_PIECE:
        block = library.malloc(size)
        left = library.mallinfo2().free
        if free - left < size:  # no hole is so large: it was mapped by itself
            library.free(block)
            size //= 2
        else:
            held.append(block)
            free = left
    return held


def add_heap(library: ctypes.CDLL, spare: int) -> None:
    """Make the heap larger, without touching it, until `spare` bytes are free in it."""
    library.mallopt(M_MMAP_THRESHOLD, MOST_MAPPED)
    missing, pieces = spare - library.mallinfo2().free, []
    while missing > SMALLEST_PIECE:
        pieces.append(library.malloc(min(missing, PIECE)))
        missing -= PIECE
    if pieces:
        begin, end, _ = heap()
        library.madvise(begin, end - begin, MADV_HUGEPAGE)  # a page fault for 2 MiB instead of 512
    for piece in pieces:
        library.free(piece)


def heap() -> tuple[int, int, int]:
    """Where the heap that grows with brk(2) begins and ends, and how many of its bytes are resident."""
    begin = end = held = 0
    with SMAPS.open() as areas:
        for line in areas:
            if line.endswith("[heap]\n"):
                first, last = (int(address, 16) for address in line.split()[0].split("-"))
                begin, end = begin or first, last
            elif end and line.startswith("Rss:"):
                held += int(line.split()[1]) * 1024
            elif end and "-" in line.split()[0]:  # the next area
                break
    return begin, end, held


@dataclass
class Peak:
    """The most bytes held above what was held at first; None where it cannot be measured."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device, spare: int | None = None) -> Iterator[Peak]:
    """Measure the most memory that is held while this lasts, above what is held when it begins.

    On the CPU nothing is measured, and nothing done, unless bytes are promised: `spare` is how many the promise leaves
    beyond the tensors (0 keeps resident memory as near to them as can be); see `bounded_heap`.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    library = None if spare is None or device.type != "cpu" else glibc()
    with nullcontext(0) if library is None or spare is None else bounded_heap(library, spare) as kept:
        begun = None if library is None else begin_resident(kept)
        files = 0 if begun is None else resident("RssFile")
        yield peak
        if begun is not None:
            peak.bytes = max(0, resident("VmHWM") - begun - max(0, resident("RssFile") - files))


def begin_resident(kept: int) -> int | None:
    """Forget the peak of this process's resident memory; return its resident bytes but for those `kept` free.

    None where the system cannot tell.
    """
    try:
        CLEAR.write_text("5")  # proc(5): resets the peak
        return resident("VmRSS") - kept
    except OSError:
        return None


def resident(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def weights_bytes(*modules: nn.Module | None) -> int:
    """Bytes of all parameters and buffers, those that are tied once."""
    return held_bytes(t for module in modules if module is not None for t in (*module.parameters(), *module.buffers()))


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of tensors, each once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def keep_unpacked(net: Any) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew when they are first used without gradients, as it does on some
    processors; from then on they would give none."""
    for module in net.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def align(net: nn.Module) -> None:
    """Copy weights of convolutions that begin at an odd place in memory, as they may where they lie in a mapped file.

    There the kernels of some processors round otherwise (seen on AMD's with AVX2), so that a run in this process would
    differ from one in workers, which have copies.
    """
    convolutions = (module for module in net.modules() if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d))
    for tensor in chain.from_iterable(module.parameters() for module in convolutions):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNED:
            tensor.data = tensor.data.clone()
