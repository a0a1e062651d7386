"""Bound what one client can do to a round: how far its update may go, what it may weigh, and that what is made of it is
finite.

    too far:   ‖Δ_i‖ > 10 · median of the norms of deltas that counted in earlier rounds; before any, of this round's
    weight:    n_i ← min(n_i, max_weight · median_k n_k), over the clients that count
    blamed:    where the new state is not finite, whoever has ‖Δ_i‖ > 10 · median_k ‖Δ_k‖; where nobody has, everybody

A median of an even number is the lower of the middle two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hellora.core.exchange import Factors
from hellora.core.robust import bounded_weights, first_not_finite, median
from hellora.core.state import ServerState
from hellora.core.types import AdapterSpec
from hellora.methods.sharing import answer_part, delta_norm
from hellora.methods.strategies import Answers

TIMES = 10.0  # the median: what an honest update stays below
REMEMBERED = 1000  # norms, for each choice of factors
SHOWN = 3  # clients, where nobody stands out
MAY_BE_NAN = ("sampler/", "allocator/", "dispatcher/")  # states of theirs: nan is a score that nobody knows

Norms = Mapping[int, float]


@dataclass(frozen=True)
class GuardSettings:
    """The [guard] table says what one client can do to a round."""

    max_norm: float | Literal["auto", "off"] = (
        "auto"  # L2 norm of a delta that counts; auto: 10 × earlier rounds' median
    )
    max_weight: float | Literal["off"] = 10.0  # what a client weighs at most, in medians of the clients that count

    def __post_init__(self) -> None:
        if not isinstance(self.max_norm, str) and not self.max_norm > 0:
            raise ValueError(f"max_norm must be greater than 0, 'auto' or 'off', not {self.max_norm}")
        if not isinstance(self.max_weight, str) and not self.max_weight >= 1:
            raise ValueError(f"max_weight must be at least 1, or 'off', not {self.max_weight}")


def norms_of(answers: Answers, spec: AdapterSpec, share: float = 1.0) -> dict[int, float]:
    """Return the L2 norm of each update's whole delta, by client, over `share`: of the learning rate that a schedule
    gives the round. What stays with a client is no part of it."""
    return {
        update.client: delta_norm(update.adapter, answer_part(task, spec), task) / share for task, update in answers
    }


def too_far(norms: Norms, earlier: Sequence[float]) -> dict[int, str]:
    """Say of which clients the delta is too large, held against earlier norms or, where there are none, each other."""
    usual = median(earlier or list(norms.values())) if norms else 0.0
    return {
        client: f"its delta has a norm of {norm:.4g}, and guard.max_norm = 'auto' allows {TIMES * usual:.4g}, "
        f"{TIMES:g} times the median of {'earlier rounds' if earlier else 'the round'}"
        for client, norm in norms.items()
        if norm > TIMES * usual > 0
    }


def remembered(state: ServerState, factors: Factors, norms: Norms) -> Mapping[str, tuple[float, ...]]:
    """Return the state's norms with those of a round; factors move at scales of their own."""
    return (
        state.norms
        if not norms
        else {**state.norms, factors: (*state.norms.get(factors, ()), *norms.values())[-REMEMBERED:]}
    )


def bounded(answers: Answers, max_weight: float | None) -> Answers:
    """Return the answers, none of which weighs more than `max_weight` times their median."""
    if max_weight is None:
        return answers
    weights = {update.client: update.weight for _, update in answers}
    most = bounded_weights(weights, max_weight)
    return [
        (task, update if most[client] == weights[client] else replace(update, most_weight=most[client]))
        for task, update in answers
        for client in [update.client]
    ]


def not_finite(state: ServerState) -> str:
    """Say what a run cannot go on from: a tensor of the adapter, or of a strategy's state; "" where all are finite."""
    states = {name: value for name, value in state.strategies.items() if not name.startswith(MAY_BE_NAN)}
    name = first_not_finite({**state.adapter.tensors(), **states}.items())
    return f"{name} is not finite" if name else ""


def blamed(norms: Norms, problem: str) -> dict[int, str]:
    """Say whose updates are to be left out of a round that they spoiled, and why."""
    usual = median(list(norms.values()))
    if far := {client: norm for client, norm in norms.items() if norm > TIMES * usual}:
        return {client: f"{problem}, and its delta has a norm of {norm:.4g}" for client, norm in far.items()}
    largest = sorted(norms, key=lambda client: -norms[client])[:SHOWN]
    said = ", ".join(f"{norms[client]:.4g} of client {client}" for client in largest)
    return dict.fromkeys(norms, f"{problem}, and no update stands out: the largest deltas have norms of {said}")
