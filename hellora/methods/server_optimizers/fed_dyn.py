"""FedDyn's server (Acar et al., ICLR 2021, arXiv 2111.04263) takes back the drift that its clients remember.

    h ← h − (α/N) Σ_k (θ_k − θ^t)        θ^{t+1} = aggregated − h/α

With g = −h/α this is, without α, which is the clients' to choose,

    g ← g + (1/N) Σ_k (θ_k − θ^t)        θ^{t+1} = aggregated + g

The sum is over the clients that counted, each with weight 1. N counts, for each layer, the clients whose budget can
ever train it, and for the head those that can train at all. Where nobody trained a component it and its g stay as they
are, bit for bit. Updates are read as they arrived: a wire format that rounds leaves its rounding in g.

The clients' part, and what both need of a run, is `local_training/fed_dyn.py`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hellora.core.state import StrategyState
from hellora.core.types import Adapter, Mask
from hellora.methods.context import RoundContext
from hellora.methods.demands import DRIFT_KEPT, DRIFT_TAKEN_BACK, LASTING_COMPONENTS, LONE_ADAPTER, Demands
from hellora.methods.local import Shapes, cut, put_back
from hellora.methods.stepping import stepped
from hellora.methods.strategies import ServerOptimizer


@dataclass(frozen=True)
class FedDyn(ServerOptimizer):
    """Adds to the aggregated adapter how far clients have gone so far, each time somebody was asked."""

    @property
    def demands(self) -> Demands:
        needs = frozenset({DRIFT_KEPT, LASTING_COMPONENTS, LONE_ADAPTER})
        return Demands(needs, promises=frozenset({DRIFT_TAKEN_BACK}))

    def step(
        self, context: RoundContext, aggregated: Adapter, trained: Mask, factors: frozenset[str]
    ) -> tuple[Adapter, StrategyState]:
        drift, gone = dict(context.state), mean_moved_by_all(context)

        def move(name: str, delta: Tensor, moves: Tensor) -> Tensor:
            before = drift.get(name, torch.zeros_like(delta))
            drift[name] = torch.where(moves, before + gone.get(name, 0.0), before)
            return delta + drift[name]

        return stepped(context, aggregated, trained, factors, move), drift


def mean_moved_by_all(context: RoundContext) -> dict[str, Tensor]:
    """Return (1/N) Σ_k (θ_k − θ^t) by flat name, of all components, in float64; the sum runs by client id."""
    start, able = context.adapter.tensors(), context.trainers()
    sums: dict[str, Tensor] = {}
    for client in sorted(context.updates):
        shapes = Shapes(context.spec, context.trained[client])
        for name, now in context.updates[client].tensors().items():
            rows, before = shapes.rows(name), start[name].double()
            count = len(context.able) if rows is None else int(able[context.spec.layer_of[name.rpartition(".")[0]]])
            total = sums.get(name, torch.zeros_like(before))
            moved = (now.double() - cut(before, name, rows)) / count
            sums[name] = put_back(total, cut(total, name, rows) + moved, name, rows)
    return sums
