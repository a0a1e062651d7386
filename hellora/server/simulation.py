"""Simulate the devices of a round: who can be reached, how long each takes, and who is left behind.

    seconds of client i = download bytes / link_i + operations / speed_i + upload bytes / link_i

A round lasts until the last client that counts has answered. Where fewer than the cohort do so before the deadline, and
somebody is still awaited, it lasts until the deadline. Who is left behind trains nothing: all is known beforehand, so
nothing here depends on how fast this machine is. The server's own work takes no simulated time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hellora.budgets.planner import Estimate
from hellora.core.exchange import ClientFailure
from hellora.core.seeds import rng_for
from hellora.core.types import ClientProfile
from hellora.methods.sharing import Crossing
from hellora.server.backend import Order
from hellora.server.federation import Federation


@dataclass(frozen=True, slots=True, eq=False)
class Turnout:
    """A turnout says who was reached, whose answers count, and who is missing."""

    reached: tuple[Order, ...]
    awaited: tuple[Order, ...]  # of those reached
    missing: tuple[ClientFailure, ...]
    seconds: Mapping[int, float] = field(default_factory=dict)  # simulated, of each client; {} = not known
    lasted: float | None = None  # simulated seconds; None = not known


def is_available(client: ClientProfile, round: int, seed: int) -> bool:
    """Draw whether the client can be reached in a round, by seed, round and id, with the client's own probability."""
    return bool(rng_for(seed, "available", round, client.id).random() < client.availability)


def simulate(
    run: Federation,
    round: int,
    orders: Sequence[Order],
    estimated: Mapping[int, Estimate],
    crossing: Mapping[int, Crossing],
) -> Turnout:
    """Say who of the clients of `orders` is there to answer, and how long that takes, as their profiles say. Real
    clients are all awaited.
    """
    if not run.simulated:
        return Turnout(tuple(orders), tuple(orders), ())
    available = {order.client: is_available(run.by_id[order.client], round, run.seed) for order in orders}
    seconds = None
    if run.timed:
        clients = [order.client for order in orders]
        seconds = {c: simulated_seconds(run.by_id[c], estimated[c], crossing[c]) for c in clients}
    return turnout(orders, available, seconds, run.cohort, run.deadline)


def simulated_seconds(client: ClientProfile, estimate: Estimate, crossing: Crossing) -> float:
    """Return how long a client of known link and speed takes, from the server's message to the end of its answer."""
    assert client.link is not None
    assert estimate.seconds is not None
    return (crossing.down + crossing.up) / client.link + estimate.seconds


def turnout(
    orders: Sequence[Order],
    available: Mapping[int, bool],
    seconds: Mapping[int, float] | None,
    cohort: int,
    deadline: float | None,
) -> Turnout:
    """Let the first `cohort` of the available clients to answer before the deadline count; of two at the same time,
    that of the lower id. `seconds` has the time of each, by id; where it is None, time plays no part.
    """
    reached = tuple(order for order in orders if available[order.client])
    missing = [ClientFailure(o.client, "missing", "not available") for o in orders if not available[o.client]]
    if seconds is None:
        return Turnout(reached, reached, tuple(missing))
    limit = math.inf if deadline is None else deadline
    order = sorted((seconds[order.client], order.client) for order in reached)
    in_time = [client for time, client in order if time <= limit]
    counted, surplus, late = in_time[:cohort], in_time[cohort:], [client for time, client in order if time > limit]
    for client in surplus:
        why = f"not among the first {cohort}: would take {in_seconds(seconds[client])}"
        missing.append(ClientFailure(client, "missing", why))
    for client in late:
        why = f"deadline: would take {in_seconds(seconds[client])} of {in_seconds(limit)}"
        missing.append(ClientFailure(client, "missing", why))
    lasted = limit if late and len(counted) < cohort else max((seconds[client] for client in counted), default=0.0)
    awaited = tuple(order for order in reached if order.client in counted)
    return Turnout(reached, awaited, tuple(missing), seconds, lasted)


def in_seconds(time: float) -> str:
    """Write a time for a person."""
    return f"{time:.3g} s" if time < 1000 else f"{time:.0f} s"
