"""FIM-HLA of Fed-HeLLo (Zhang et al., arXiv 2506.12213): layers are drawn by their Fisher information.

    Γ_j = mean over examples d of ‖∇_{θ_j} loss(d)‖²  →  exact 1-D k-means of Γ into K clusters, ascending
    p_j = w_j / Σ_k w_k   with w_j = 1 … K for the lowest … highest cluster

k-means runs on the raw Γ, as published, so a few dominant layers may form clusters of their own. Each client draws its
c_i layers without replacement. Γ stays in force until the next refresh. It comes from proxy data, or from what clients
report of the layers they trained: the mean over the reporting clients, weighted by their examples and smoothed over
rounds; a layer that nobody reported yet counts as the mean of the others. No reported score counts as more than the
0.75-quantile of the clients' largest scores (and of the largest until now): 1e300 moves a layer as far as others could.
Where Γ says nothing (no report yet, not finite, all equal) the probabilities are those of `randomized_geometric`.

Scores on proxy data are of the server's model. Where clients keep a head or a factor of their own there is none: the
server's head, or its B, is as it began, and with B = 0 the gradient of A is 0. Then only clients can score.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from hellora.core.robust import quantile
from hellora.core.state import StrategyState
from hellora.core.types import Allocation
from hellora.methods.allocators.geometric import Pattern
from hellora.methods.allocators.randomized_geometric import RandomizedGeometric
from hellora.methods.context import RoundContext, Scores
from hellora.methods.demands import LAYER_SCORES_REPORTED, PROXY_DATA, SCORED_MODEL, Demands
from hellora.methods.layer_sampling import probabilities_from_scores, sample_layers
from hellora.methods.strategies import Allocator

BELIEVED = 0.75  # the quantile of clients' largest scores above which none is believed
Source = Literal["proxy", "clients"]
Resample = Literal["every_round", "on_refresh"]


def span(setting: int | None, rounds: int) -> int:
    """Return a setting in rounds; None is a tenth of the run (the paper's 50 of 500), at least 1."""
    return max(1, rounds // 10) if setting is None else setting


@dataclass(frozen=True)
class Fisher(Allocator):
    """Lets more clients train important layers, and measures importance anew every `refresh` rounds."""

    scores: Source = "proxy"  # who scores the layers: the server on proxy data, or the clients
    refresh: int | None = None  # rounds between refreshes, T_FIM; None = a tenth of the run
    resample: Resample = "every_round"  # on_refresh: a client keeps its layers until the next refresh
    clusters: int = 3  # into which layers are put by their scores
    smoothing: float = 0.9  # of reported scores: how much of the old value stays when a layer is reported again
    fallback: Pattern = "bottleneck"  # the pattern where scores say nothing

    def __post_init__(self) -> None:
        for name, allowed in (("scores", get_args(Source)), ("resample", get_args(Resample))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if self.refresh is not None and self.refresh < 1:
            raise ValueError(f"refresh must be at least 1 round, not {self.refresh}")
        if self.clusters < 1:
            raise ValueError(f"clusters must be at least 1, not {self.clusters}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), not {self.smoothing}")
        RandomizedGeometric(self.fallback)

    @property
    def demands(self) -> Demands:
        if self.scores == "clients":
            return Demands(needs=frozenset({LAYER_SCORES_REPORTED}), brings=("layer_scores",))
        return Demands(needs=frozenset({PROXY_DATA, SCORED_MODEL}))

    def measured(self, context: RoundContext) -> StrategyState:
        """Return the state with the `scores` (layers,) that are in force, measured anew where it is time."""
        state = dict(self.observe(context))
        if "refreshed" not in state or context.round - int(state["refreshed"]) >= span(self.refresh, context.rounds):
            scores = filled(state["reported"].numpy()) if self.scores == "clients" else context.layer_scores()
            state |= {"scores": torch.from_numpy(scores.copy()), "refreshed": torch.tensor(context.round)}
        return state

    def allocate(self, context: RoundContext) -> tuple[Allocation, StrategyState]:
        state = self.measured(context)
        p = probabilities_from_scores(state["scores"].numpy(), self.clusters)
        if p is None:
            p = RandomizedGeometric(self.fallback).probabilities(context)
        drawn = int(state["refreshed"]) if self.resample == "on_refresh" else context.round
        return context.largest_allocation(
            lambda client, c: sample_layers(p, c, context.rng(client.id, "layers", drawn))
        ), state

    def observe(self, context: RoundContext) -> StrategyState:
        """Return the state with last round's reports added: `reported` (layers,) is nan until a layer is first seen."""
        if self.scores != "clients":
            return context.state
        unseen = torch.full((context.spec.num_layers,), torch.nan, dtype=torch.float64)
        old: Scores = context.state.get("reported", unseen).numpy()
        told = context.reported("layer_scores/scores")
        clients = sorted((c for c in context.fleet if c.id in told), key=lambda client: client.id)
        reports = np.array([told[client.id].double().numpy() for client in clients])
        reports = clipped(reports.reshape(-1, context.spec.num_layers), old)
        given = np.isfinite(reports)
        weights = given * np.array(list(context.weights(client.id for client in clients).values()))[:, None]
        seen = given.any(axis=0)
        total = np.where(seen, weights.sum(axis=0), 1.0)
        mean = (weights * np.where(given, reports, 0.0)).sum(axis=0) / total
        smoothed = np.where(np.isnan(old), mean, self.smoothing * old + (1 - self.smoothing) * mean)
        return {**context.state, "reported": torch.from_numpy(np.where(seen, smoothed, old))}


def clipped(reports: Scores, old: Scores) -> Scores:
    """Return the reports (clients, layers) with no score above what clients are believed; nan stays nan."""
    known = [row[np.isfinite(row)] for row in (*reports, old)]
    largest = [float(scores.max()) for scores in known if len(scores)]
    return np.minimum(reports, quantile(largest, BELIEVED)) if largest else reports


def filled(reported: Scores) -> Scores:
    """Return the scores with the mean of those seen in place of those not seen; all nan if there are none."""
    seen = reported[np.isfinite(reported)]
    return np.where(np.isfinite(reported), reported, seen.mean()) if len(seen) else reported
