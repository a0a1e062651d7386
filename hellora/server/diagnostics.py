"""Measure what goes quietly wrong when unequal adapters are averaged, in numbers cheap enough for every round."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from hellora.budgets.planner import Estimate
from hellora.core.low_rank import norm, stacked, thin_svd
from hellora.core.types import Adapter, AdapterSpec, Allocation, LoraPair
from hellora.methods.contributions import component_mean
from hellora.methods.strategies import Answers


def aggregation_error(answers: Answers, spec: AdapterSpec) -> float | None:
    """Return how far a mean of factors is from the mean of products, for these updates, whatever the aggregator does.

    It is ‖Σ_k p_k s B_k A_k − s B̄ Ā‖_F / ‖Σ_k p_k s B_k A_k‖_F over all modules, p_k ∝ n_k over the clients that
    trained the module, B̄ and Ā averaged by component over the clients that trained it (FedEx-LoRA, arXiv 2410.09432).
    It is None where nobody trained, or the products are 0.
    """
    error = exact = 0.0
    for module in spec.modules:
        parts = [
            (torch.tensor(task.trained[module.layer]), update.adapter.pairs[module.name], update.weight)
            for task, update in answers
            if module.name in update.adapter.pairs
        ]
        if not parts:
            continue
        total = sum(weight for _, _, weight in parts)
        blank = torch.zeros(spec.max_rank, 1, dtype=torch.float64)
        A = component_mean(blank.expand(-1, module.d_in), [(rows, pair.A, weight) for rows, pair, weight in parts])
        B = component_mean(blank.expand(-1, module.d_out), [(rows, pair.B.T, weight) for rows, pair, weight in parts])
        products = [(weight / total, pair) for _, pair, weight in parts]
        exact += norm(stacked(products)) ** 2
        error += norm(stacked([*products, (-1.0, LoraPair(A, B.T, spec.scale))])) ** 2
    return (error / exact) ** 0.5 if exact > 0 else None


def energy(adapter: Adapter, spec: AdapterSpec) -> list[float]:
    """Return the spectrum of the global adapter: the share of Σ ‖ΔW‖_F² in the 1st, 2nd, … singular direction of its
    modules.

    These `max_rank` numbers add up to 1 without a residual, and are all 0 while ΔW = 0. A tail that fades is rank
    collapse (raFLoRA, arXiv 2602.13486).
    """
    leading, total = torch.zeros(spec.max_rank, dtype=torch.float64), 0.0
    for name, pair in adapter.pairs.items():
        residual = [adapter.residual[name]] if name in adapter.residual else []
        squares = thin_svd([(1.0, part) for part in (pair, *residual)]).S.square()
        total += float(squares.sum())
        leading[: len(squares)] += squares[: spec.max_rank]
    shares: list[float] = (leading / total).tolist() if total > 0 else leading.tolist()
    return shares


def idle_rounds(allocation: Allocation, updated: Sequence[int], before: Sequence[int] | None) -> list[int]:
    """Count the rounds since a counted client last trained each layer, 0 = this one; `before`: a round ago."""
    counted = np.isin(allocation.clients, updated)
    trained = np.any(allocation.ranks[counted] > 0, axis=0)
    past = before or [0] * len(trained)
    return [0 if now else 1 + rounds for now, rounds in zip(trained.tolist(), past, strict=True)]


def client_metrics(
    answers: Answers, estimated: Mapping[int, Estimate], simulated: Mapping[int, float]
) -> Mapping[int, Mapping[str, float]]:
    """Return what each counted client measured, by id, and what was predicted for it."""
    metrics: dict[int, Mapping[str, float]] = {}
    for _, update in answers:
        predicted: dict[str, float] = {}
        if (estimate := estimated.get(update.client)) is not None:
            predicted["predicted_peak_bytes"] = estimate.cost.peak_bytes
            predicted |= {} if estimate.seconds is None else {"predicted_seconds": round(estimate.seconds, 3)}
        if (seconds := simulated.get(update.client)) is not None:
            predicted["simulated_seconds"] = round(seconds, 3)
        metrics[update.client] = {**update.metrics, "examples": update.num_examples, **predicted}
    return metrics
