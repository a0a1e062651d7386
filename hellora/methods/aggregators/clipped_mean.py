"""Sun et al. (arXiv 1911.07963): clip the norm of updates, here of unequal ones.

    Δ_i = trained − received, over all factors that client i trained and its head
    θ_j ← Σ_{i∈C_j} w_i (received_ij + Δ_ij min(1, M / ‖Δ_i‖₂)) / Σ_{i∈C_j} w_i

It is the mean over the clients that trained a component (`participant_mean`), of updates whose delta as a whole is no
longer than M = `max_norm`. Their weak differential privacy, noise on top, is not part of it.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from hellora.core.exchange import ClientTask, ClientUpdate
from hellora.core.state import StrategyState
from hellora.core.types import Adapter, AdapterSpec, LoraPair
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.context import RoundContext
from hellora.methods.contributions import Weighting, check_weighting
from hellora.methods.demands import AGGREGATES_HEAD, ALL_SHARED, AVERAGES_COMPONENTS, Demands
from hellora.methods.sharing import answer_part, delta_norm
from hellora.methods.strategies import Aggregator, Answers


@dataclass(frozen=True)
class ClippedMean(Aggregator):
    """Averages over the clients that trained a component, each delta scaled down to an L2 norm of `max_norm`.

    It bounds what one client can do, and does not find out who is dishonest: many together still move the mean. A
    `max_norm` below what honest clients need slows everyone down.
    """

    max_norm: float = 10.0  # M
    weighting: Weighting = "uniform"  # clients count by their examples, or alike

    def __post_init__(self) -> None:
        check_weighting(self.weighting)
        if not self.max_norm > 0:
            raise ValueError(f"max_norm must be greater than 0, not {self.max_norm}")

    @property
    def demands(self) -> Demands:
        own = AVERAGES_COMPONENTS.also(needs={ALL_SHARED})  # what stays with a client is no part of what it changed
        return replace(own, takes=frozenset({AGGREGATES_HEAD}))

    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        clipped = [(task, self.clipped(task, update, context.spec)) for task, update in answers]
        return ParticipantMean(self.weighting).aggregate(context, clipped)

    def clipped(self, task: ClientTask, update: ClientUpdate, spec: AdapterSpec) -> ClientUpdate:
        """Return the update with its delta no longer than `max_norm`; one that is not longer is as it was."""
        sent, head = answer_part(task, spec), update.adapter.head if task.head == "aggregate" else {}
        norm = delta_norm(replace(update.adapter, head=head), sent)
        if norm <= self.max_norm:
            return update

        def nearer(value: Tensor, start: Tensor) -> Tensor:
            return (start.double() + (value.double() - start.double()) * (self.max_norm / norm)).to(value.dtype)

        pairs = {
            name: LoraPair(nearer(pair.A, sent.pairs[name].A), nearer(pair.B, sent.pairs[name].B), pair.scale)
            for name, pair in update.adapter.pairs.items()
        }
        near_head = {name: nearer(value, sent.head[name]) for name, value in head.items()}
        return replace(update, adapter=Adapter(pairs, {**update.adapter.head, **near_head}))
