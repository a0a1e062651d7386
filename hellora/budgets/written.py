"""Budgets as people write them: in an experiment file, on the command line of a client, in the message with which it
joins. Behind this file every budget is a `Budget`."""

from hellora.core.types import Budget
from hellora.core.units import parse_bytes, parse_layers


def written_budget(
    where: str,
    *,
    layers: int | str | None = None,
    rank: int | tuple[int, ...] | None = None,
    memory: str | int | None = None,
    seconds: float | None = None,
    uplink: str | None = None,
) -> Budget:
    """Return the budget that somebody wrote; None is no limit.

    Args:
        where: what stands before the name of a limit in a message, such as "fleet." or "--"
        layers: a number, a share of the model's such as "1/3", or "all"
        rank: one number for every layer, or one per layer
        memory: a size such as "6GiB", or bytes
        seconds: of local training, per round
        uplink: a size, per round

    Raises:
        InputError: a size is none.
        ValueError: layers are neither a number nor a share.
    """
    return Budget(
        layers=None if layers is None else parse_layers(layers),
        rank=rank,
        memory_bytes=parse_bytes(memory, f"{where}memory") if isinstance(memory, str) else memory,
        seconds=seconds,
        uplink_bytes=None if uplink is None else parse_bytes(uplink, f"{where}uplink"),
    )
