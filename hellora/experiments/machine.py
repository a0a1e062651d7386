"""Say where the work is done: on which threads and devices of this machine."""

import os
from typing import Literal

import psutil
import torch

from hellora.core.errors import InputError
from hellora.experiments.experiment import Experiment
from hellora.model.bf16 import has_bf16

CPU_BUILDS = "https://download.pytorch.org/whl/cpu"  # of PyTorch, as its own page of installation says


def threads(experiment: Experiment) -> int:
    """Return the threads of this process and of each worker; results depend on them, so all have the same number."""
    return experiment.compute.threads or max(1, cores() // workers(experiment))


def cores() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers(experiment: Experiment) -> int:
    """Return the number of processes that train side by side: `compute.workers`, or one per device."""
    return experiment.compute.workers or len(devices(experiment.compute.device))


def devices(name: str) -> list[str]:
    """Return the devices of the worker processes, in turn."""
    if name == "auto":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    return [name]


def torch_build() -> str:
    """Say which build of torch is installed and, where it is a large one that is of no use here, how to get another."""
    built = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{built}, which computes on the CPU" + (" and Apple's GPU" if torch.backends.mps.is_available() else "")
    if torch.cuda.is_available():
        return f"{built}, with CUDA {torch.version.cuda}, on {torch.cuda.get_device_name()}"
    return (
        f"{built}, with CUDA {torch.version.cuda}, and there is no GPU here; for the CPU build, much smaller: "
        f"make clean && make install PIP_ARGS='--extra-index-url {CPU_BUILDS}'"
    )


def free_memory(device: str) -> int:
    """Return the bytes that are free on a device now."""
    name = devices(device)[0]
    return torch.cuda.mem_get_info(name)[0] if name.startswith("cuda") else psutil.virtual_memory().available


def settled_dtype(device: str) -> Literal["bfloat16", "float32"]:
    """Return what `model.dtype = "auto"` is on a device: bfloat16 where it computes in that by itself."""
    return "bfloat16" if has_bf16(devices(device)[0]) else "float32"


def arithmetic(experiment: Experiment) -> str:
    """Say in what number format this machine computes; "" where that is float32, and it has no other."""
    device, precision = devices(experiment.compute.device)[0], experiment.train.precision
    native, weights = has_bf16(device), experiment.model.dtype
    if weights != "float32":
        return f"arithmetic on {device}: that of base weights in {weights}"
    if precision == "auto":
        return f"arithmetic on {device}: {'bf16' if native else 'float32, for it has no bf16'} (train.precision = auto)"
    if precision == "bf16":
        return f"arithmetic on {device}: bf16" + ("" if native else ", which it has not, so that float32 is faster")
    return f"arithmetic on {device}: float32; train.precision = auto would take bf16, which is often faster" * native


def kind_of(name: str) -> str:
    """Return the kind of device, cpu or cuda, whose kernels are assumed for costs. It need not be there."""
    kind = devices(name)[0].partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise InputError(f"compute.device = {name!r}: costs are known for cpu and cuda: name one of them, or auto")
    return kind


def device_check(name: str) -> None:
    if name != "auto":
        try:
            torch.zeros(1, device=name).tolist()
        except (RuntimeError, AssertionError, ImportError) as error:
            why = str(error).splitlines()[0].partition(". ")[0]
            raise InputError(f"compute.device = {name!r} cannot be used here ({why}): name another, or auto") from error
