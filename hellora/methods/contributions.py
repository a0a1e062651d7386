"""Read answers as aggregators need them: in order, with weights, and module by module beside what was sent."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hellora.core.algebra import components, mean_head, new_pair, trained_components
from hellora.core.exchange import ClientUpdate
from hellora.core.low_rank import Term, thin_svd, to_global
from hellora.core.robust import bounded_weights
from hellora.core.types import Adapter, LoraPair, ModuleSpec
from hellora.methods.context import RoundContext
from hellora.methods.strategies import Answers

Weighting = Literal["samples", "uniform"]


@dataclass(frozen=True, slots=True, eq=False)
class Contribution:
    """One client contributes this to a module. `before`, `after` and `rest` together are what acted at the client."""

    share: float  # p_k; those of a module add up to 1
    rows: Tensor  # (max_rank,) bool: the components of the global adapter that it trained
    before: LoraPair  # what it trained, as it was dispatched: D_k
    after: LoraPair  # the same components as it returned them: B_k, A_k
    rest: LoraPair  # what else it was sent of the module and kept frozen; often of rank 0


def check_weighting(weighting: Weighting) -> None:
    """Raise ValueError unless it is one."""
    if weighting not in get_args(Weighting):
        raise ValueError(f"weighting must be one of {', '.join(get_args(Weighting))}, not {weighting!r}")


def in_order(answers: Answers) -> Answers:
    """Sort the answers by client id, so that sums do not depend on who answered first."""
    return sorted(answers, key=lambda answer: answer[1].client)


def weights_of(answers: Answers, weighting: Weighting) -> list[float]:
    """Return each answer's weight: its examples (tokens, of language), or 1."""
    return [update.weight if weighting == "samples" else 1.0 for _, update in answers]


def contributions(module: ModuleSpec, answers: Answers, weighting: Weighting) -> list[Contribution]:
    """Return the part in `module` of every client that trained it, by client id."""
    trainers = [answer for answer in in_order(answers) if module.name in answer[1].adapter.pairs]
    weights = weights_of(trainers, weighting)
    parts = []
    for (task, update), weight in zip(trainers, weights, strict=True):
        row, sent = task.trained[module.layer], task.adapter.pairs[module.name]
        chosen = trained_components(sent, row, task.cut)
        parts.append(
            Contribution(
                share=weight / sum(weights),
                rows=torch.tensor(row),
                before=components(sent, chosen),
                after=update.adapter.pairs[module.name],
                rest=components(sent, ~chosen),
            )
        )
    return parts


def aggregated_head(answers: Answers, weighting: Weighting) -> dict[str, Tensor]:
    """Return the mean of the head over all answers."""
    by_id = in_order(answers)
    return mean_head([update.adapter for _, update in by_id], weights_of(by_id, weighting))


def head_by_class(context: RoundContext, aggregated: Adapter, answers: Answers) -> Adapter:
    """Return the adapter with each row of its linear head weighed by the examples of its class (`class_counts`):
    Σ_k n_kc w_kc / Σ_k n_kc, in float64; the global one where nobody has the class. Nobody has more of a class than
    examples; counts are bounded as weights are.
    """
    by_id = in_order(answers)
    told = [update.report["class_counts/counts"].clamp(max=update.num_examples) for _, update in by_id]
    counts = torch.stack(told).double()  # (clients, classes)
    for column in range(counts.shape[1]):
        known = {client: float(n) for client, n in enumerate(counts[:, column]) if n > 0}
        for client, weight in bounded_weights(known, context.max_weight).items():
            counts[client, column] = weight
    head, total = {}, counts.sum(0)
    for name, old in context.adapter.head.items():
        trained = torch.stack([update.adapter.head[name].double() for _, update in by_id])  # (clients, classes, …)
        wide = (-1, *[1] * (old.ndim - 1))
        weights = counts.reshape(*counts.shape, *wide[1:])
        mean = (weights * trained).sum(0) / total.clamp(min=1).reshape(wide)
        head[name] = torch.where(total.reshape(wide) > 0, mean, old.double()).to(old.dtype)
    return replace(aggregated, head=head)


def mean_by_component(context: RoundContext, answers: Answers, weigh: Callable[[ClientUpdate], float]) -> Adapter:
    """Return the adapter in which each rank component is the weighted mean over the clients that trained it, factor by
    factor, and the head that over all; what nobody trained stays.
    """
    if not answers:
        return context.adapter
    by_id = in_order(answers)
    pairs = {}
    for module in context.spec.modules:
        old, parts = context.adapter.pairs[module.name], trained_pairs(by_id, module)
        A = component_mean(old.A, [(rows, pair.A, weigh(update)) for update, rows, pair in parts])
        B = component_mean(old.B.T, [(rows, pair.B.T, weigh(update)) for update, rows, pair in parts])
        pairs[module.name] = LoraPair(A, B.T.contiguous(), old.scale)
    updates = [update for _, update in by_id]
    head = mean_head([update.adapter for update in updates], list(map(weigh, updates)))
    return replace(context.adapter, pairs=pairs, head=head)


def trained_pairs(answers: Answers, module: ModuleSpec) -> list[tuple[ClientUpdate, Tensor, LoraPair]]:
    """Return, of each client that trained a module: its update, its components (max_rank,) bool, their pair."""
    return [
        (update, torch.tensor(task.trained[module.layer]), update.adapter.pairs[module.name])
        for task, update in answers
        if module.name in update.adapter.pairs
    ]


def component_mean(old: Tensor, parts: Sequence[tuple[Tensor, Tensor, float]]) -> Tensor:
    """Return, per row of `old` (max_rank, d), the weighted mean over the parts that have the row; `old` where none has.

    A part is: which rows it has, (max_rank,) bool; their values, (rank, d); its weight.
    """
    total = torch.zeros_like(old, dtype=torch.float64)
    weight_of_row = torch.zeros(len(old), 1, dtype=torch.float64)
    for rows, values, weight in parts:
        where = slice(None) if rows.all() else rows  # an index of all rows would copy them twice
        total[where] += weight * values.double()
        weight_of_row[where] += weight
    return torch.where(weight_of_row > 0, total / weight_of_row, old.double()).to(old.dtype)


def coordinate_wise(context: RoundContext, answers: Answers, combine: Callable[[Tensor], Tensor]) -> Adapter:
    """Return the adapter whose numbers are each `combine` of what clients returned for them: unweighted, in float64.

    `combine` maps (clients, …) to (…). Of a rank component the clients are those that trained it, of the head all.
    """
    adapter, spec = context.adapter, context.spec
    if not answers:
        return adapter
    by_id = in_order(answers)
    pairs = {}
    for module in spec.modules:
        old = adapter.pairs[module.name]
        A, B = old.A.clone(), old.B.T.contiguous()
        trainers = [(task, update) for task, update in by_id if module.name in update.adapter.pairs]
        rows = [np.flatnonzero(task.trained[module.layer]).tolist() for task, _ in trainers]
        after = [update.adapter.pairs[module.name] for _, update in trainers]
        for component in range(spec.max_rank):
            held = [(pair, row.index(component)) for pair, row in zip(after, rows, strict=True) if component in row]
            if held:
                A[component] = combine(torch.stack([pair.A[place].double() for pair, place in held]))
                B[component] = combine(torch.stack([pair.B[:, place].double() for pair, place in held]))
        pairs[module.name] = LoraPair(A, B.T.contiguous(), old.scale)
    heads = [update.adapter.head for _, update in by_id]
    head = {
        name: combine(torch.stack([head[name].double() for head in heads])).to(value.dtype)
        for name, value in heads[0].items()
    }
    return replace(adapter, pairs=pairs, head=head)


def mean_held(global_pair: LoraPair, parts: Sequence[Contribution]) -> list[Term]:
    """Return the value form, Σ_k p_k ΔW_k, ΔW_k being all that acts at client k. What dispatch cut off counts as 0."""
    frozen = with_global(global_pair, 0.0, [(part.share, ~part.rows, part.rest) for part in parts])
    return [*frozen, *[(part.share, part.after) for part in parts]]


def mean_moved(global_pair: LoraPair, parts: Sequence[Contribution], eta: float = 1.0) -> list[Term]:
    """Return the update form, ΔW + η Σ_k p_k (s_k B_k A_k − D_k). What a client did not train stays as it is in the
    global adapter.

    It is the same as the value form where η = 1 and nothing was cut off at dispatch.
    """
    left = with_global(global_pair, 1.0, [(-eta * part.share, part.rows, part.before) for part in parts])
    return [*left, *[(eta * part.share, part.after) for part in parts]]


def with_global(global_pair: LoraPair, start: float, parts: Iterable[tuple[float, Tensor, LoraPair]]) -> list[Term]:
    """Return start · ΔW + Σ w · pair, for parts (w, rows, pair).

    A pair that is the global adapter's own `rows` only changes the weights of the global adapter's components, so that
    the stacked rank does not grow with the number of clients.
    """
    weights = torch.full((global_pair.rank,), start, dtype=torch.float64)
    others: list[Term] = []
    for weight, rows, pair in parts:
        if torch.equal(pair.A, global_pair.A[rows]) and torch.equal(pair.B, global_pair.B[:, rows]):
            weights[rows] += weight
        elif pair.rank:
            others.append((weight, pair))
    weights[weights.abs() < 1e-12] = 0.0  # shares add up to 1 but for rounding
    return [(1.0, LoraPair(global_pair.A.double(), global_pair.B.double() * weights, global_pair.scale)), *others]


def factorised_anew(
    context: RoundContext,
    answers: Answers,
    weighting: Weighting,
    terms: Callable[[LoraPair, Sequence[Contribution]], list[Term]],
) -> Adapter:
    """Return the adapter with SVD_R(Σ terms(global_pair, parts)) in every module that somebody trained, and the mean
    head.

    Components beyond the rank of the sum are drawn anew.
    """
    adapter, spec, seed = context.adapter, context.spec, context.seed_for("aggregate")
    if not answers:
        return adapter
    pairs = dict(adapter.pairs)
    for module in spec.modules:
        if parts := contributions(module, answers, weighting):
            found = thin_svd(terms(pairs[module.name], parts), spec.max_rank)
            pairs[module.name] = to_global(found, spec.scale, new_pair(module, spec, seed).A)
    return replace(adapter, pairs=pairs, head=aggregated_head(answers, weighting))
