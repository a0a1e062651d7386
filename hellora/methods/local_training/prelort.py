"""PreLort (arXiv 2606.15963): an adapter that is good at several ranks, because its first components are trained to do
without the others.

    loss = 1/(1 + |S|) · (F(r) + Σ_{s ∈ S} F(⌈s r⌉))

F(q) is the loss of the model in which the first q of the r components that a client trains of a module act, and S are
`truncations`. The sum is the paper's; that all have the same weight is ours. What a client does not train acts as ever:
to be good at a lower rank as a whole, let it receive no more than it trains (method.dispatcher = "truncate").

Each truncation is one more forward pass and backward of each micro-batch. They run one after the other, so that they
take time, which budgets in seconds count, and no memory. The loss that clients report is this mean.
"""

from dataclasses import dataclass

from hellora.methods.strategies import LocalTraining


@dataclass(frozen=True)
class Prelort(LocalTraining):
    """Takes the loss at several ranks: with all components, and with the first ones alone."""

    truncations: tuple[float, ...] = (0.25, 0.5)  # S, shares of the rank; () is plain training

    def __post_init__(self) -> None:
        shares = list(self.truncations)
        if shares != sorted(set(shares)) or not all(0 < share < 1 for share in shares):
            raise ValueError(f"truncations must be shares of the rank between 0 and 1, ascending, not {shares}")

    @property
    def rank_shares(self) -> tuple[float, ...]:
        return self.truncations
