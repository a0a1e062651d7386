"""Strategies, one published idea a file, in a folder for each of the seven kinds.

What they are made of lies beside them: the kinds (`strategies`), what a strategy sees (`context`, `local`), what it
needs and promises (`demands`), and answers module by module (`contributions`). Strategy authors need nothing but the
names below and those of `hellora.core`.

It imports budgets and core.
"""

from hellora.methods.closed_form import (
    HeadRows,
    HeadShape,
    Sums,
    counts_of,
    counts_spec,
    gram_in_numbers,
    gram_of,
    gram_spec,
    moments_of,
    moments_spec,
    ridge_solution,
    summed,
)
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
from hellora.methods.stepping import stepped
from hellora.methods.strategies import (
    Aggregator,
    Allocator,
    Answers,
    Dispatcher,
    LocalTraining,
    Method,
    Sampler,
    ServerOptimizer,
    Start,
    Strategy,
)

__all__ = [
    "Aggregator",
    "Allocator",
    "Answers",
    "Contribution",
    "Demands",
    "Dispatcher",
    "Fact",
    "HeadRows",
    "HeadShape",
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
    "Start",
    "Strategy",
    "Sums",
    "Weighting",
    "aggregated_head",
    "component_mean",
    "contributions",
    "coordinate_wise",
    "counts_of",
    "counts_spec",
    "cut",
    "factorised_anew",
    "gram_in_numbers",
    "gram_of",
    "gram_spec",
    "in_order",
    "mean_by_component",
    "mean_held",
    "mean_moved",
    "moments_of",
    "moments_spec",
    "put_back",
    "ridge_solution",
    "sample_layers",
    "stepped",
    "summed",
    "trained_pairs",
    "weights_of",
]
