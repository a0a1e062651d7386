"""HeLoRA-KD (Fan et al., ACM TOIT 25(2), 2025, doi 10.1145/3723877): each rank's global adapter is taught by the
others.

    1. within a rank:   θ_r ← Σ_{k: r_k = r} n_k θ_k / Σ_{k: r_k = r} n_k
    2. between ranks:   θ_r ← AdamW on  λ_ce · CE(y, z_r) + λ_kd · T² · KL( softmax(z̄ / T) ‖ softmax(z_r / T) ),
                        z̄ = Σ_s w_s z_s / Σ_s w_s,  z_s = the logits of θ_s on public data after step 1

The published code distils between clients' models; here between one prototype per rank, so that the server's work does
not grow with the number of clients. In the published code λ_ce = 0, T = 1, and an epoch is repeated ten times.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from hellora.core.algebra import prototype_of, prototype_row, with_prototypes
from hellora.core.errors import InputError
from hellora.core.exchange import ClientTask, ClientUpdate
from hellora.core.state import StrategyState
from hellora.core.types import Adapter
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.context import RoundContext
from hellora.methods.demands import (
    AVERAGES_COMPONENTS,
    LASTING_COMPONENTS,
    LONE_ADAPTER,
    MEAN_OF_EQUALS,
    PROBABILITIES,
    PROTOTYPES_KEPT,
    PROTOTYPES_SENT,
    PUBLIC_DATA,
    RETURNS_THE_ONLY_ONE,
    SHARED_MODEL,
    TRAINS_BOTH,
    Demands,
)
from hellora.methods.strategies import Aggregator, Answers

Ensemble = Literal["uniform", "rank", "samples"]


@dataclass(frozen=True)
class MutualDistillation(Aggregator):
    """Averages the clients of each rank into its prototype; then all prototypes learn from their ensemble.

    The fields are the settings of step 2, for which a model is lent (hellora.client.distillation). A rank that nobody
    trained keeps its prototype in step 1, bit for bit. In step 2 it teaches and learns like the others.
    """

    temperature: float = 2.0  # of the probabilities that are compared
    kd_weight: float = 1.0  # of the loss of distillation
    ce_weight: float = 0.3  # of the true labels; public examples without one add nothing
    kd_steps: int = 50  # per round and prototype, and never more than one pass over the public data
    kd_batch_size: int = 16  # public examples in a step
    kd_lr: float = 1e-3  # of AdamW on the server
    ensemble: Ensemble = "uniform"  # w: alike, by rank, or by the examples that a rank was trained on this round
    include_self: bool = True  # False: a prototype learns from the others only
    top_k: int = 64  # of a language model: teachers say this much about each token, and the mass of the rest

    def __post_init__(self) -> None:
        for name in ("temperature", "kd_weight", "kd_steps", "kd_batch_size", "kd_lr", "top_k"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0, not {getattr(self, name)}")
        if self.ce_weight < 0:
            raise ValueError(f"ce_weight must not be negative, not {self.ce_weight}")
        if self.ensemble not in get_args(Ensemble):
            raise ValueError(f"ensemble must be one of {', '.join(get_args(Ensemble))}, not {self.ensemble!r}")

    @property
    def demands(self) -> Demands:
        alone = AVERAGES_COMPONENTS.less(LONE_ADAPTER, LASTING_COMPONENTS)
        return alone.also(
            needs={PROBABILITIES, PROTOTYPES_SENT, PUBLIC_DATA, SHARED_MODEL, TRAINS_BOTH},
            promises={PROTOTYPES_KEPT, MEAN_OF_EQUALS, RETURNS_THE_ONLY_ONE},
        )

    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        students = self.within_ranks(context, answers)
        if len(students) > 1 and answers:
            if context.lent is None:
                raise InputError("mutual_distillation needs a model and public data: give federate() what it may lend")
            teachers = self.teachers(students, answers)
            students = context.lent.distil(students, teachers, self, context.seed_for("distil"))
        return with_prototypes(students), {}

    def within_ranks(self, context: RoundContext, answers: Answers) -> dict[int, Adapter]:
        """Do step 1: return every prototype by its rank, ascending, each the mean of the clients of its rank."""
        adapter, spec = context.adapter, context.spec
        of_rank: dict[int, list[tuple[ClientTask, ClientUpdate]]] = {}
        for task, update in answers:
            row = prototype_row(task.trained)
            of_rank.setdefault(row.shape[1], []).append((replace(task, trained=row), update))
        means = {}
        for rank in sorted({*of_rank, *adapter.prototypes, spec.max_rank}):
            own = replace(context, adapter=prototype_of(adapter, rank, spec))
            means[rank], _ = ParticipantMean().aggregate(own, of_rank.get(rank, []))
        return means

    def teachers(self, ranks: Iterable[int], answers: Answers) -> dict[int, float]:
        """Return each prototype's weight w in the ensemble, by rank. By samples, an idle rank counts as one example."""
        if self.ensemble == "rank":
            return {rank: float(rank) for rank in ranks}
        weights = dict.fromkeys(ranks, 1.0)
        if self.ensemble == "samples":
            for rank in weights:
                examples = sum(u.weight for t, u in answers if prototype_row(t.trained).shape[1] == rank)
                weights[rank] = max(1.0, examples)
        return weights
