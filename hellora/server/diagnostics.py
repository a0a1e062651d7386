"""Measure what goes quietly wrong when unequal adapters are averaged, in numbers cheap enough for every round.

A number is a sum over modules. Where all of them would cost too much, it is taken from a sample: modules drawn by seed,
one of each layer before a second one of any. Cost is counted in multiply-adds, never timed, so that every machine and
every resumed run takes the same modules.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hellora.budgets.planner import Estimate
from hellora.core.exchange import ClientUpdate
from hellora.core.low_rank import Term, inner, norm, singular_values, stacked
from hellora.core.seeds import rng_for
from hellora.core.state import Diagnostics
from hellora.core.types import Adapter, AdapterSpec, Allocation, LoraPair, ModuleSpec
from hellora.methods.contributions import component_mean, trained_pairs
from hellora.methods.strategies import Answers

PER_NUMBER = 64  # multiply-adds for each number that is measured; to train it took a client thousands
ALWAYS = 2**28  # multiply-adds, a tenth of a second of one slow core, that are not too much for any round
ROWS, TERMS = 1024, 32  # of a dense sum that are formed at once

Parts = Sequence[tuple[ClientUpdate, Tensor, LoraPair]]  # of a module, as `trained_pairs` returns them


def diagnose(answers: Answers, adapter: Adapter, spec: AdapterSpec, seed: int) -> Diagnostics:
    """Measure a round that leaves `adapter`. `seed` is the run's: each round samples modules in the same order."""
    order = by_turns(spec, seed)
    trained = {module: parts for module in order if (parts := trained_pairs(answers, module))}
    acting = {module: terms for module in order if (terms := terms_of(adapter, module))}
    compared = affordable(
        {module: cost_of_error(module, parts, spec.max_rank) for module, parts in trained.items()},
        sum(numbers_in(pair) for parts in trained.values() for _, _, pair in parts),
    )
    factorised = affordable(
        {module: cost_of_spectrum(module, terms) for module, terms in acting.items()},
        sum(numbers_in(pair) for terms in acting.values() for _, pair in terms),
    )
    return Diagnostics(
        aggregation_error=aggregation_error({module: trained[module] for module in compared}, spec),
        error_modules=(len(compared), len(trained)),
        energy=energy([acting[module] for module in factorised], spec.max_rank),
        energy_modules=(len(factorised), len(acting)),
    )


# ---------------------------------------------------------------------------------------------------------- the sample


def by_turns(spec: AdapterSpec, seed: int) -> list[ModuleSpec]:
    """Return the modules in an order drawn by seed, in which each layer has a turn before one has its second."""
    turns: list[tuple[int, ModuleSpec]] = []
    had = [0] * spec.num_layers
    for place in rng_for(seed, "diagnostics").permutation(len(spec.modules)).tolist():
        module = spec.modules[place]
        turns.append((had[module.layer], module))
        had[module.layer] += 1
    return [module for _, module in sorted(turns, key=lambda turn: turn[0])]


def affordable(costs: Mapping[ModuleSpec, int], numbers: int) -> list[ModuleSpec]:
    """Return the first modules whose multiply-adds are not too many for so many numbers: at least one, if any."""
    left = max(ALWAYS, PER_NUMBER * numbers)
    chosen: list[ModuleSpec] = []
    for module, cost in costs.items():
        left -= cost
        if left < 0 and chosen:
            break
        chosen.append(module)
    return chosen


def numbers_in(pair: LoraPair) -> int:
    return pair.A.numel() + pair.B.numel()


# --------------------------------------------------------------------------------------- the error of averaging factors


def aggregation_error(trained: Mapping[ModuleSpec, Parts], spec: AdapterSpec) -> float | None:
    """Return how far a mean of factors is from the mean of products, for these updates, whatever the aggregator does.

    It is ‖Σ_k p_k s B_k A_k − s B̄ Ā‖_F / ‖Σ_k p_k s B_k A_k‖_F over the modules, p_k ∝ n_k over the clients that
    trained the module, B̄ and Ā averaged by component over the clients that trained it (FedEx-LoRA, arXiv 2410.09432).
    It is None where nobody trained, or the products are 0.
    """
    error = exact = 0.0
    for module, parts in trained.items():
        total = sum(update.weight for update, _, _ in parts)
        products = [(update.weight / total, pair) for update, _, pair in parts]
        mean = mean_of_factors(module, parts, spec)
        size = squared_norm(products, module)
        exact += size
        error += size - 2 * sum(inner(stacked(some), mean) for some in batches(products)) + norm(mean) ** 2
    return (max(0.0, error) / exact) ** 0.5 if exact > 0 else None


def mean_of_factors(module: ModuleSpec, parts: Parts, spec: AdapterSpec) -> LoraPair:
    """Return B̄ and Ā in float64; a component that nobody trained is 0."""
    blank = torch.zeros(spec.max_rank, 1, dtype=torch.float64)
    A = component_mean(blank.expand(-1, module.d_in), [(rows, pair.A, update.weight) for update, rows, pair in parts])
    B = component_mean(
        blank.expand(-1, module.d_out), [(rows, pair.B.T, update.weight) for update, rows, pair in parts]
    )
    return LoraPair(A, B.T, spec.scale)


def squared_norm(terms: Sequence[Term], module: ModuleSpec) -> float:
    """Return ‖Σ w · s · B A‖_F², in whichever way takes fewer multiply-adds: of rank × rank products, or dense."""
    rank = sum(pair.rank for _, pair in terms)
    if by_rank(rank, module) <= dense(rank, module):
        return norm(stacked(terms)) ** 2
    total = 0.0
    for start in range(0, module.d_out, ROWS):
        block = torch.zeros(min(ROWS, module.d_out - start), module.d_in, dtype=torch.float64)
        for some in batches(terms):
            pair = stacked(some)
            block.addmm_(pair.B[start : start + ROWS], pair.A)
        total += float(block.square().sum())
    return total


def batches(terms: Sequence[Term]) -> Iterator[Sequence[Term]]:
    for start in range(0, len(terms), TERMS):
        yield terms[start : start + TERMS]


def by_rank(rank: int, module: ModuleSpec) -> int:
    """Count the multiply-adds of a norm from matrices of rank × rank numbers."""
    return rank * rank * (module.d_in + module.d_out)


def dense(rank: int, module: ModuleSpec) -> int:
    """Count the multiply-adds of a norm from the dense matrix."""
    return rank * module.d_in * module.d_out


def cost_of_error(module: ModuleSpec, parts: Parts, max_rank: int) -> int:
    """Count the multiply-adds of `aggregation_error` in a module."""
    rank = sum(pair.rank for _, _, pair in parts)
    return min(by_rank(rank, module), dense(rank, module)) + rank * max_rank * (module.d_in + module.d_out)


# --------------------------------------------------------------------------------------- the spectrum of the adapter


def energy(acting: Sequence[Sequence[Term]], max_rank: int) -> tuple[float, ...]:
    """Return the spectrum of the global adapter: the share of Σ ‖ΔW‖_F² in the 1st, 2nd, … singular direction of its
    modules, each given by its terms.

    These `max_rank` numbers add up to 1 without a residual, and are all 0 while ΔW = 0. A tail that fades is rank
    collapse (raFLoRA, arXiv 2602.13486).
    """
    leading, total = torch.zeros(max_rank, dtype=torch.float64), 0.0
    for terms in acting:
        squares = singular_values(terms).square()
        total += float(squares.sum())
        leading[: len(squares)] += squares[:max_rank]
    return tuple((leading / total if total > 0 else leading).tolist())


def terms_of(adapter: Adapter, module: ModuleSpec) -> list[Term]:
    """Return the pair and the residual of a module, as far as it has them."""
    return [(1.0, part[module.name]) for part in (adapter.pairs, adapter.residual) if module.name in part]


def cost_of_spectrum(module: ModuleSpec, terms: Sequence[Term]) -> int:
    """Count the multiply-adds of `energy` in a module, about: two QR factorisations and the values of what is left."""
    rank = sum(pair.rank for _, pair in terms)
    left, right = min(rank, module.d_out), min(rank, module.d_in)
    return rank * (left * module.d_out + right * module.d_in + left * right) + 2 * left * right * min(left, right)


# ---------------------------------------------------------------------------------------------------- layers left alone


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
