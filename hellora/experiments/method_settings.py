"""The [method] table names the strategies, and says what happens to the head and to the factors."""

from dataclasses import dataclass
from typing import Literal

from hellora.core.exchange import Factors, HeadPolicy
from hellora.methods.strategies import EndsWith, HeadBegins, HeadMean, Trains


@dataclass(frozen=True)
class MethodSettings:
    """The [method] table names the strategies; their own settings are not among these."""

    start: str = "none"  # how the head is solved in closed form
    sampler: str = "uniform"  # who is asked
    allocator: str = "fed_hello"  # who trains what
    dispatcher: str = "whole"  # what a client receives
    local_training: tuple[str, ...] = ("plain",)  # rules of how a client trains, in order
    aggregator: str = "participant_mean"  # how unequal updates become one adapter
    head: HeadPolicy = "aggregate"  # aggregate, frozen, local, or closed_form: frozen, and solved again
    head_begins: HeadBegins = "solved"  # by the start, or drawn, and solved after rounds only
    head_rounds: int = 0  # it is solved again after every so many rounds, and the last; 0 = with closed_form the last
    head_mean: HeadMean = (
        "by_client"  # an aggregated row weighs by the client's examples, or by_class: by those of its class
    )
    logit_scale: float | Literal["auto"] = "auto"  # of a solved head; auto: the one of 1, 2 … 64 with the least loss
    projection: int = 0  # numbers that features are projected to before they are summed; 0 = they are not
    ends_with: EndsWith = (
        "last"  # better: the adapter is put back where its head is right about fewer left-out examples
    )
    trains: Trains = "both"  # the factors that clients train: both, B (FFA-LoRA), A, alternate (RoLoRA)
    shares: Factors = "both"  # the factors that are aggregated: both, A (FedSA-LoRA), B

    def __post_init__(self) -> None:
        if self.head_rounds < 0 or self.projection < 0:
            raise ValueError("head_rounds and projection must not be negative")
        if self.logit_scale != "auto" and not self.logit_scale > 0:
            raise ValueError(f"logit_scale must be greater than 0, or 'auto', not {self.logit_scale}")
