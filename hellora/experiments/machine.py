"""Say where the work is done: on which threads and devices of this machine."""

import os

import torch

from hellora.core.errors import InputError
from hellora.experiments.experiment import Experiment


def threads(experiment: Experiment) -> int:
    """Return the threads of this process and of each worker; results depend on them, so all have the same number."""
    return experiment.compute.threads or max(1, cores() // experiment.compute.workers)


def cores() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def devices(name: str) -> list[str]:
    """Return the devices of the worker processes, in turn."""
    if name == "auto":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    return [name]


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
