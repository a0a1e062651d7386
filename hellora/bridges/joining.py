"""Read what a client of somebody's own Flower app says of itself: who it is, and what it can afford."""

from collections.abc import Mapping
from typing import Any

from hellora.backends.roster import Reply
from hellora.budgets.written import written_budget
from hellora.core.errors import HelloraError
from hellora.core.types import Budget, ClientProfile

BUDGET, EXAMPLES = "budget", "num-examples"  # a record, and a key of it


def said(reply: Reply) -> dict[str, Any]:
    """Return the budget that a node answers with. Raise ValueError where there is none."""
    if isinstance(reply, str):
        raise ValueError(reply)
    if BUDGET not in reply.config_records:
        raise ValueError(f'its answer to "query.join" has no ConfigRecord {BUDGET!r}')
    return dict(reply.config_records[BUDGET])


def admitted(_: int, fields: Mapping[str, Any]) -> str:
    """Return the name of a client. Raise ValueError where its budget cannot be."""
    profile_of(0, fields)
    return str(fields["name"])


def profile_of(client: int, fields: Mapping[str, Any]) -> ClientProfile:
    """Return the profile of a client that says this of itself. Raise ValueError where it cannot be."""
    if unknown := sorted(fields.keys() - {"name", EXAMPLES, "layers", "rank"}):
        raise ValueError(f"its budget has {unknown[0]!r}: it may have name, {EXAMPLES}, layers and rank")
    if not isinstance(fields.get("name"), str):
        raise ValueError("its budget has no name, which is a text")
    if not isinstance(examples := fields.get(EXAMPLES), int) or examples < 1:
        raise ValueError(f"its budget has no {EXAMPLES}, which is at least 1")
    return ClientProfile(client, examples, budget_of(fields))


def budget_of(fields: Mapping[str, Any]) -> Budget:
    rank = fields.get("rank")
    try:
        return written_budget("", layers=fields.get("layers"), rank=tuple(rank) if isinstance(rank, list) else rank)
    except (HelloraError, TypeError, ValueError) as error:
        raise ValueError(f"its budget cannot be: {error}") from error
