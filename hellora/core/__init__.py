"""Values and mathematics: adapters, fleets, messages, states; seeds, sizes, algebra, number formats.

What strategy authors need of it has its name here. It is looked up when it is first asked for, so that whoever needs an
error or a version does not wait for torch.

It imports no other room, and of libraries only numpy and torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hellora.core.errors import InputError, RunError
    from hellora.core.exchange import (
        ClientTask,
        ClientUpdate,
        Declared,
        Named,
        Outputs,
        TensorSpec,
        TrainSettings,
    )
    from hellora.core.low_rank import thin_svd
    from hellora.core.seeds import rng_for, seed_for
    from hellora.core.state import StrategyState
    from hellora.core.sums import Grid
    from hellora.core.types import (
        Adapter,
        AdapterSpec,
        Allocation,
        Budget,
        ClientProfile,
        LoraPair,
        Mask,
        ModuleSpec,
        Ranks,
        Sent,
    )

__all__ = [
    "Adapter",
    "AdapterSpec",
    "Allocation",
    "Budget",
    "ClientProfile",
    "ClientTask",
    "ClientUpdate",
    "Declared",
    "Grid",
    "InputError",
    "LoraPair",
    "Mask",
    "ModuleSpec",
    "Named",
    "Outputs",
    "Ranks",
    "RunError",
    "Sent",
    "StrategyState",
    "TensorSpec",
    "TrainSettings",
    "rng_for",
    "seed_for",
    "thin_svd",
]

HOMES = ("errors", "seeds", "types", "exchange", "state", "sums", "low_rank")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in HOMES:
            module = import_module(f"hellora.core.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"hellora.core has no {name!r}")
