"""What is measured is what is held."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from hellora.model.memory import (
    M_MMAP_THRESHOLD,
    M_TRIM_THRESHOLD,
    MAPPED,
    MOST_KEPT,
    MOST_MAPPED,
    HeapInfo,
    glibc,
    peak_memory,
    weights_bytes,
)

MIB = 2**20
MEASURE = """
import json, mmap, torch
from hellora.model.memory import peak_memory
torch.set_num_threads(1)
device = torch.device("cpu")
held = torch.ones(8 * 2**18)  # before, 8 MiB
torch.ones(2**18).sum()
found = []
for sizes in ([32], [16, 48, 8], []):
    with peak_memory(device, 0) as peak:
        for size in sizes:
            tensor = torch.ones(size * 2**18)  # MiB of float32
            del tensor
    found.append(peak.bytes)
with peak_memory(device, 0) as peak:
    many = [torch.ones(2**15) for _ in range(160)]  # 20 MiB in blocks of 128 KiB
found.append(peak.bytes)
with peak_memory(torch.device("meta"), 0) as peak:
    pass
found.append(peak.bytes)
with peak_memory(device, 0) as peak:
    blocks = [torch.ones(5 * 2**10) for _ in range(1024)]  # 20 MiB in blocks of 20 KiB
    kept = blocks[::16]
    del blocks
    torch.ones(20 * 2**18).sum()
found.append(peak.bytes)
with open(torch.__path__[0] + "/lib/libtorch_python.so", "rb") as file:
    with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as code, peak_memory(device, 0) as peak:
        sum(code[i] for i in range(0, 16 * 2**20, 4096))
found.append(peak.bytes)
print(json.dumps(found))
"""


def test_peak_of_a_fresh_process() -> None:
    """The largest of what was held at once; that what was freed is given back."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    one, largest, nothing, many, elsewhere, after, file = json.loads(done.stdout)
    assert elsewhere is None, "memory of another device is not this process's"
    if glibc() is None:
        assert (one, largest, nothing, many, after, file) == (None,) * 6
        return
    assert one == pytest.approx(32 * MIB, rel=0.03)
    assert largest == pytest.approx(48 * MIB, rel=0.03)
    assert nothing < MIB
    assert many == pytest.approx(20 * MIB, rel=0.05)
    assert after < 30 * MIB, "blocks that stay keep none of those between them"
    assert file < MIB, "what is in a file is no memory of training"


SPARED = """
import json, torch
from hellora.model.memory import glibc, peak_memory
torch.set_num_threads(1)
found = []
rubble = [torch.ones(5 * 2**18) for _ in range(20)]  # 5 MiB each
rubble = rubble[::2]  # leaves holes of 50 MiB in the heap
for spare in (0, 16, 256):
    with peak_memory(torch.device("cpu"), spare * 2**20) as peak:
        for size in range(1, 40):
            kept = [torch.ones(size * 2**15) for _ in range(8)]  # none fits in the holes before
            del kept
        held = [torch.ones(2**18) for _ in range(40)]  # 40 MiB
        del held
    found.append(peak.bytes)
print(json.dumps(found))
"""


def test_what_is_kept_is_what_is_spared() -> None:
    """Resident memory is above the tensors by what the heap may keep, at most, whatever holes it had before."""
    done = subprocess.run([sys.executable, "-c", SPARED], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    if glibc() is None:
        assert found == [None] * 3
        return
    for spare, peak in zip((0, 16, 256), found, strict=True):
        assert 40 * MIB * 0.97 < peak < (40 + spare) * MIB * 1.03 + MIB


KEPT = """
import json, resource, torch
from hellora.model.memory import glibc, peak_memory
torch.set_num_threads(1)
found = []
for _ in range(3):
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with peak_memory(torch.device("cpu"), 256 * 2**20) as peak:
        held = [torch.ones(2**18) for _ in range(64)]  # 64 MiB in blocks of 1 MiB
        del held
    found.append((peak.bytes, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults))
print(json.dumps(found))
"""


def test_the_heap_stays_from_task_to_task() -> None:
    """What a roomy budget keeps is faulted in once, not once a task, and is still counted as held."""
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    if glibc() is None:
        assert [peak for peak, _ in found] == [None] * 3
        return
    for peak, faults in found[1:]:
        assert 64 * MIB * 0.97 < peak < 80 * MIB  # huge pages are held whole
        assert faults < 64 * MIB // 4096 // 10


class Recorder:
    """A C library that writes down what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def mallopt(self, parameter: int, value: int) -> None:
        self.asked.append((parameter, value))

    def malloc_trim(self, pad: int) -> None:
        self.asked.append((0, pad))

    def mallinfo2(self) -> HeapInfo:
        return HeapInfo(used=0, free=0)


def test_without_a_promise_the_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Recorder()
    monkeypatch.setattr("hellora.model.memory.glibc", lambda: library)
    with peak_memory(torch.device("cpu")) as peak:
        torch.ones(10)
    assert peak.bytes is None
    assert not library.asked


def test_a_promise_ends_with_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the training fails."""
    library = Recorder()
    monkeypatch.setattr("hellora.model.memory.glibc", lambda: library)
    promise = peak_memory(torch.device("cpu"), 0)
    promise.__enter__()
    assert dict(library.asked)[M_MMAP_THRESHOLD] == MAPPED
    assert not promise.__exit__(RuntimeError, RuntimeError(), None)
    left = dict(library.asked)
    assert (left[M_MMAP_THRESHOLD], left[M_TRIM_THRESHOLD]) == (MOST_MAPPED, MOST_KEPT)


def test_without_glibc_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hellora.model.memory.glibc", lambda: None)
    with peak_memory(torch.device("cpu"), 0) as peak:
        torch.ones(10)
    assert peak.bytes is None


def test_without_a_peak_to_reset_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    """A container may forbid it."""
    monkeypatch.setattr("hellora.model.memory.CLEAR", tmp_path)  # writing to a folder is an OSError
    with peak_memory(torch.device("cpu"), 0) as peak:
        torch.ones(10)
    assert peak.bytes is None


def test_weights_that_are_tied_count_once() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(5, 7, bias=False)
            self.b = nn.Linear(5, 7, bias=False)
            self.b.weight = self.a.weight
            self.register_buffer("c", torch.zeros(3, dtype=torch.int64))

    assert weights_bytes(Net(), None) == 5 * 7 * 4 + 3 * 8
    assert weights_bytes(nn.Linear(5, 7), nn.Linear(2, 3)) == (35 + 7) * 4 + (6 + 3) * 4
