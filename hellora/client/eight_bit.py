"""AdamW whose states have 8 bits, in blocks with a scale each (Dettmers et al., ICLR 2022, arXiv 2110.02861).

bitsandbytes computes it, on CUDA and on the CPU alike. Tensors of fewer than 4096 numbers keep states of 32 bits.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hellora.core.errors import InputError
from hellora.core.exchange import TrainSettings

DEVICES = ("cuda", "cpu", "xpu")  # for which bitsandbytes has this


def adamw_8bit(parameters: Sequence[nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    """Make the optimizer. Raise InputError where bitsandbytes is not installed, or not for the parameters' device."""
    check_eight_bit(settings, parameters[0].device.type if parameters else "cpu")
    optim: Any = importlib.import_module("bitsandbytes.optim")  # which takes seconds, and few runs need it
    found: torch.optim.Optimizer = optim.AdamW8bit(list(parameters), lr=settings.lr, weight_decay=settings.weight_decay)
    return found


def check_eight_bit(settings: TrainSettings, device: str) -> None:
    """Raise InputError where the settings ask for states of 8 bits and they cannot be had on a device, such as cpu."""
    if settings.optimizer != "adamw_8bit":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("train.optimizer = 'adamw_8bit' needs bitsandbytes: pip install 'hellora[quantized]'")
    if device not in DEVICES:
        raise InputError(
            f"train.optimizer = 'adamw_8bit' is not to be had on {device}, but on {', '.join(DEVICES)}: choose adamw"
        )
