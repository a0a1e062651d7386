"""SCAFFOLD (Karimireddy et al., ICML 2020, arXiv 1910.06378, option II): variates correct the drift of clients.

    every step          g ← g − c_k + c
    client's end        c_k⁺ = c_k − c + (θ^t − θ_k) / Σ η           it keeps c_k⁺ and reports c_k⁺ − c_k
    server's end        c ← c + (1/N) Σ_k (c_k⁺ − c_k)

Σ η is the sum of the learning rates of the client's steps, K η without a schedule; where it is 0, c_k stays as it is.
N counts, for each layer, the clients whose budget can ever train it: over all clients c would be diluted where few can.
Of components that a client does not train, c_k stays as it is, and c moves by the others alone; so c is at all times
the mean of the c_k. The variates live in the coordinates of the global adapter: a method that factorises it anew is
refused.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hellora.core.exchange import Declared, Named
from hellora.core.state import StrategyState
from hellora.core.types import ClientProfile
from hellora.methods.context import RoundContext
from hellora.methods.demands import (
    ALL_SHARED,
    LASTING_COMPONENTS,
    LONE_ADAPTER,
    OWN_COMPONENTS,
    PLAIN_SGD,
    SHARED_MODEL,
    Demands,
)
from hellora.methods.local import Local, Shapes, cut, put_back
from hellora.methods.strategies import LocalTraining


@dataclass(frozen=True)
class Scaffold(LocalTraining):
    """Lets clients remember where they are pulled, and train as if they were pulled like everybody."""

    @property
    def demands(self) -> Demands:
        coordinates = {LASTING_COMPONENTS, LONE_ADAPTER, OWN_COMPONENTS}
        return Demands(needs=frozenset({PLAIN_SGD, ALL_SHARED, SHARED_MODEL} | coordinates))

    def declares(self, shapes: Shapes) -> Declared:
        trained = shapes.trained_tensors()
        kept = {name: replace(spec, optional=True) for name, spec in shapes.all_tensors().items()}
        received = sum(spec.num_bytes for spec in trained.values())
        return Declared(brief=trained, report=trained, kept=kept, scratch_bytes=received)

    def brief(self, context: RoundContext, client: ClientProfile, shapes: Shapes) -> Named:
        """Return c of what the client trains."""
        return {name: self.own(context.state, name, shapes) for name in shapes.trained_tensors()}

    def own(self, variates: Named, name: str, shapes: Shapes) -> Tensor:
        """Return what the client trains of a variate with all components; 0 where there is none yet."""
        if name in variates:
            return cut(variates[name], name, shapes.rows(name))
        spec = shapes.trained_tensors()[name]
        return torch.zeros(spec.shape, dtype=spec.dtype)

    def gradients(self, local: Local, carry: Any) -> Any:
        for name, parameter in local.parameters.items():
            if parameter.grad is not None:
                parameter.grad += local.brief[name] - self.own(local.kept, name, local.shapes).to(parameter.device)
        return carry

    def end(self, local: Local, carry: Any) -> tuple[Named, Named]:
        if local.rate_sum == 0:  # the only step of the round is the first of a run's warm-up
            return {name: torch.zeros_like(value.cpu()) for name, value in local.parameters.items()}, local.kept
        report, kept, scale = {}, dict(local.kept), 1 / local.rate_sum
        whole = local.shapes.all_tensors()
        for name, parameter in local.parameters.items():
            before = self.own(local.kept, name, local.shapes)
            moved = (local.received[name] - parameter.detach()).to(before.device)
            after = before - local.brief[name].to(before.device) + scale * moved
            report[name] = after - before
            blank = torch.zeros(whole[name].shape, dtype=whole[name].dtype)
            kept[name] = put_back(kept.get(name, blank), after, name, local.shapes.rows(name))
        return report, kept

    def remember(self, context: RoundContext) -> StrategyState:
        """Return c after the round; the sum runs in float64, by client id."""
        able = context.trainers()  # N, (layers,)
        variates = dict(context.state)
        for client in sorted(context.reports):
            shapes = Shapes(context.spec, context.trained[client])
            for name, change in context.reports[client].items():
                rows = shapes.rows(name)
                count = len(context.able) if rows is None else able[context.spec.layer_of[name.rpartition(".")[0]]]
                old = variates.get(name, torch.zeros_like(context.adapter.tensors()[name])).double()
                moved = cut(old, name, rows) + change.double() / int(count)
                variates[name] = put_back(old, moved, name, rows)
        return {name: tensor.float() for name, tensor in variates.items()}
