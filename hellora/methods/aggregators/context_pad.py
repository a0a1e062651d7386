"""HeLoRA-Pad (ACM TOIT 25(2), 2025, doi 10.1145/3723877): pairs of unequal ranks are padded, then averaged by rank.

    X_q = Σ_k w_kq X_kq / Σ_k w_kq   with w_kq = n_k · r_k^κ · (1 if client k has component q, else γ),  X = A, B

over the clients k that trained the module, X_kq being padded where client k has no component q. The paper's formula is
not public; κ = γ = 1 is its reconstruction. κ = γ = 0 is `participant_mean`; κ = 0, γ = 1 with zeros is `zero_pad`.

    padding      rows added to A                columns added to B           change of B A by k added components
    zero         0                              0                            none
    mean         the mean of all entries of A   the mean of all entries of B  k μ_A μ_B 𝟏𝟏ᵀ
    linear       the mean row ā                 the mean column b̄            k b̄ ā
    adjacent     the last row of A              the last column of B          k b_r A_r
    pad_a_only   the mean row ā                 0                            none

The first four are published. pad_a_only is ours: a padded pair does what the pair did, and its new rows of A still have
something to say. Of the published contexts it takes the mean row, because that is short (1/√r of a row, where rows are
unrelated), so that it disturbs little what the other clients have there. The last row is as long as theirs and would
turn all padded components towards one direction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from hellora.core.state import StrategyState
from hellora.core.types import Adapter, LoraPair
from hellora.methods.context import RoundContext
from hellora.methods.contributions import aggregated_head, component_mean, in_order, trained_pairs
from hellora.methods.demands import AVERAGES_COMPONENTS, MEAN_OF_EQUALS, ONLY_TRAINED, RETURNS_THE_ONLY_ONE, Demands
from hellora.methods.strategies import Aggregator, Answers

Padding = Literal["pad_a_only", "zero", "mean", "linear", "adjacent"]


@dataclass(frozen=True)
class ContextPad(Aggregator):
    """Pads clients of lower rank with their own context and counts them less; higher ranks weigh more."""

    padding: Padding = "pad_a_only"  # what stands for the components that a client has not
    kappa: float = 1.0  # κ: a client's weight grows with the κ-th power of its rank in the module
    gamma: float = 1.0  # γ: how much of its weight a client has in the components that it was padded with

    def __post_init__(self) -> None:
        if self.padding not in get_args(Padding):
            raise ValueError(f"padding must be one of {', '.join(get_args(Padding))}, not {self.padding!r}")
        if not self.kappa >= 0 or not self.gamma >= 0:
            raise ValueError("kappa and gamma must not be negative")

    @property
    def demands(self) -> Demands:
        return AVERAGES_COMPONENTS.also(needs={ONLY_TRAINED}, promises={MEAN_OF_EQUALS, RETURNS_THE_ONLY_ONE})

    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        if not answers:
            return context.adapter, {}
        adapter, spec = context.adapter, context.spec
        by_id = in_order(answers)
        pairs = {}
        for module in spec.modules:
            parts = [(rows, pair, u.weight * pair.rank**self.kappa) for u, rows, pair in trained_pairs(by_id, module)]
            pairs[module.name] = padded_mean(adapter.pairs[module.name], parts, self.padding, self.gamma)
        return replace(adapter, pairs=pairs, head=aggregated_head(answers, "samples")), {}


def padded_mean(
    old: LoraPair, parts: Sequence[tuple[Tensor, LoraPair, float]], padding: Padding, gamma: float
) -> LoraPair:
    """Return the weighted mean of padded pairs, component by component; one that no part has is that of `old`.

    A part is: which components it has, (max_rank,) bool; the pair of these; its weight, γ of which its padding has.
    """
    anyone = torch.zeros(old.rank, dtype=torch.bool)
    for rows, _, _ in parts:
        anyone = anyone | rows
    A, B = [], []
    for rows, pair, weight in parts:
        added = anyone & ~rows
        context = context_of(pair, int(added.sum()), padding)
        A += [(rows, pair.A, weight), (added, context.A, gamma * weight)]
        B += [(rows, pair.B.T, weight), (added, context.B.T, gamma * weight)]
    return LoraPair(component_mean(old.A, A), component_mean(old.B.T, B).T.contiguous(), old.scale)


def context_of(pair: LoraPair, count: int, padding: Padding) -> LoraPair:
    """Return the `count` components that pad a pair, in float64."""
    A, B = pair.A.double(), pair.B.double()
    row, column = torch.zeros_like(A[:1]), torch.zeros_like(B[:, :1])
    match padding:
        case "mean":
            row, column = row + A.mean(), column + B.mean()
        case "linear":
            row, column = A.mean(0, keepdim=True), B.mean(1, keepdim=True)
        case "adjacent":
            row, column = A[-1:], B[:, -1:]
        case "pad_a_only":
            row = A.mean(0, keepdim=True)
    return LoraPair(row.expand(count, -1), column.expand(-1, count), pair.scale)
