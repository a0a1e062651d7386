"""Strategies, one published idea a file, in a folder for each of the six kinds.

What they are made of lies beside them: the kinds (`strategies`), what a strategy sees (`context`, `local`), what it
needs and promises (`demands`), and answers module by module (`contributions`). Strategy authors need nothing but the
names below and those of `hellora.core`.

It imports budgets and core.
"""

from hellora.methods.context import LentModel, RoundContext, Scores
from hellora.methods.contributions import (
    Contribution,
    Weighting,
    aggregated_head,
    component_mean,
    contributions,
    coordinate_wise,
    factorised_anew,
    in_order,
    mean_by_component,
    mean_held,
    mean_moved,
    trained_pairs,
    weights_of,
)
from hellora.methods.demands import Demands, Fact
from hellora.methods.layer_sampling import sample_layers
from hellora.methods.local import Local, LocalPair, Shapes, cut, put_back
from hellora.methods.strategies import (
    Aggregator,
    Allocator,
    Answers,
    Dispatcher,
    LocalTraining,
    Method,
    Sampler,
    ServerOptimizer,
    Strategy,
    stepped,
)

__all__ = [
    "Aggregator",
    "Allocator",
    "Answers",
    "Contribution",
    "Demands",
    "Dispatcher",
    "Fact",
    "LentModel",
    "Local",
    "LocalPair",
    "LocalTraining",
    "Method",
    "RoundContext",
    "Sampler",
    "Scores",
    "ServerOptimizer",
    "Shapes",
    "Strategy",
    "Weighting",
    "aggregated_head",
    "component_mean",
    "contributions",
    "coordinate_wise",
    "cut",
    "factorised_anew",
    "in_order",
    "mean_by_component",
    "mean_held",
    "mean_moved",
    "put_back",
    "sample_layers",
    "stepped",
    "trained_pairs",
    "weights_of",
]
