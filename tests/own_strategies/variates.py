"""SCAFFOLD (Karimireddy et al., arXiv 1910.06378, option II) as a user would write it."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from hellora.core import ClientProfile, Declared, Named, StrategyState
from hellora.methods import Demands, Local, LocalTraining, RoundContext, Shapes, cut, demands, put_back


@dataclass(frozen=True)
class Variates(LocalTraining):
    """g ← g − c_k + c;  c_k⁺ = c_k − c + (θ^t − θ_k) / (K η);  c ← c + (1/N) Σ_k (c_k⁺ − c_k)."""

    @property
    def demands(self) -> Demands:
        return Demands(needs=frozenset({demands.PLAIN_SGD, demands.LASTING_COMPONENTS, demands.OWN_COMPONENTS}))

    def declares(self, shapes: Shapes) -> Declared:
        mine = shapes.trained_tensors()
        kept = {name: replace(spec, optional=True) for name, spec in shapes.all_tensors().items()}
        return Declared(brief=mine, report=mine, kept=kept)

    def brief(self, context: RoundContext, client: ClientProfile, shapes: Shapes) -> Named:
        return part_of(context.state, shapes)

    def gradients(self, local: Local, carry: Any) -> Any:
        own = part_of(local.kept, local.shapes)
        for name, parameter in local.parameters.items():
            if parameter.grad is not None:
                parameter.grad += local.brief[name] - own[name].to(parameter.device)
        return carry

    def end(self, local: Local, carry: Any) -> tuple[Named, Named]:
        before, after, kept = part_of(local.kept, local.shapes), {}, dict(local.kept)
        for name, parameter in local.parameters.items():
            moved = (local.received[name] - parameter.detach()).cpu() / local.rate_sum
            after[name] = before[name] - local.brief[name].cpu() + moved
            whole = kept.get(name, torch.zeros(local.shapes.all_tensors()[name].shape))
            kept[name] = put_back(whole, after[name], name, local.shapes.rows(name))
        return {name: after[name] - before[name] for name in after}, kept

    def remember(self, context: RoundContext) -> StrategyState:
        c = dict(context.state)
        for client in sorted(context.reports):
            shapes = Shapes(context.spec, context.trained[client])
            for name, change in context.reports[client].items():
                rows = shapes.rows(name)
                old = c.get(name, torch.zeros_like(context.adapter.tensors()[name]))
                c[name] = put_back(old, cut(old, name, rows) + change / len(context.able), name, rows)
        return c


def part_of(whole: Named, shapes: Shapes) -> dict[str, torch.Tensor]:
    """What a client trains of a variate; zeros where there is none yet."""
    return {
        name: cut(whole[name], name, shapes.rows(name)) if name in whole else torch.zeros(spec.shape)
        for name, spec in shapes.trained_tensors().items()
    }
