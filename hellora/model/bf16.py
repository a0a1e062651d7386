"""Say whether a device computes in bfloat16 by itself, rather than in float32 with roundings in between."""

import torch

# Of torch's own, for x86: the instructions that multiply bfloat16, by whatever release has a function for them.
IN_CPUS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def has_bf16(device: str) -> bool:
    """Return True for a CUDA device, or a CPU, with bf16 of its own; False for other kinds, such as mps.

    `device` is a name such as cpu, cuda or cuda:1.
    """
    kind = device.partition(":")[0]
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and any(bool(getattr(torch.cpu, name, bool)()) for name in IN_CPUS)
