"""FedDyn (Acar et al., ICLR 2021, arXiv 2111.04263): a client's loss is bent such that all agree on the best for all.

    client   loss − ⟨h_k, θ⟩ + (α/2) ‖θ − θ^t‖²            over all that it trains
             h_k ← h_k − α (θ_k − θ^t)                     at its end; it keeps h_k
    server   h ← h − (α/N) Σ_k (θ_k − θ^t),   θ^{t+1} = mean_k θ_k − h/α

h_k is the gradient of the client's own loss where it stopped. N counts, for each layer, the clients whose budget can
ever train it. Of components that a client does not train h_k stays as it is, so that h is at all times the mean of the
h_k (up to what a wire format rounds). They live in the coordinates of the global adapter: a method that factorises or
draws it anew is refused. Any optimizer of clients will do.

The server's part is a step on the aggregated delta with a state, which is what a server optimizer is, so it is one:
`server_optimizers/fed_dyn.py`. This rule needs it and it needs this rule. Clients report nothing besides.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hellora.core.exchange import Declared, Named
from hellora.methods.demands import (
    ALL_SHARED,
    DRIFT_KEPT,
    DRIFT_TAKEN_BACK,
    LASTING_COMPONENTS,
    LONE_ADAPTER,
    OWN_COMPONENTS,
    SHARED_MODEL,
    Demands,
)
from hellora.methods.local import Local, Shapes, cut, put_back
from hellora.methods.strategies import LocalTraining


@dataclass(frozen=True)
class FedDyn(LocalTraining):
    """Lets clients remember the gradient where they stopped, and penalises what the last rounds pulled them to."""

    alpha: float = 0.01  # α; 0 is plain training, and needs no server optimizer

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise ValueError(f"alpha must not be negative, but it is {self.alpha}")

    @property
    def demands(self) -> Demands:
        if self.alpha == 0:
            return Demands()
        coordinates = {LASTING_COMPONENTS, LONE_ADAPTER, OWN_COMPONENTS}
        needs = frozenset({DRIFT_TAKEN_BACK, ALL_SHARED, SHARED_MODEL} | coordinates)
        return Demands(needs, promises=frozenset({DRIFT_KEPT}))

    def declares(self, shapes: Shapes) -> Declared:
        """Declare what it keeps; it holds what was received, h_k on the device, and how far the client has moved."""
        if self.alpha == 0:
            return Declared()
        kept = {name: replace(spec, optional=True) for name, spec in shapes.all_tensors().items()}
        trained = sum(spec.num_bytes for spec in shapes.trained_tensors().values())
        return Declared(kept=kept, scratch_bytes=3 * trained)

    def own(self, local: Local, name: str) -> Tensor | None:
        """Return h_k of what the client trains of a tensor, on the CPU; None: it is 0 yet."""
        return cut(local.kept[name], name, local.shapes.rows(name)) if name in local.kept else None

    def penalty(self, local: Local) -> Tensor | None:
        """Return −⟨h_k, θ − θ^t⟩ + (α/2) ‖θ − θ^t‖², which has the gradient of the formula."""
        if self.alpha == 0:
            return None
        terms = []
        for name, parameter in local.parameters.items():
            moved = parameter - local.received[name]
            terms.append(self.alpha / 2 * moved.square().sum())
            if (h := self.own(local, name)) is not None:
                terms.append(-(h.to(moved.device) * moved).sum())
        return torch.stack(terms).sum()

    def end(self, local: Local, carry: Any) -> tuple[Named, Named]:
        if self.alpha == 0:
            return {}, {}
        kept, whole = dict(local.kept), local.shapes.all_tensors()
        for name, parameter in local.parameters.items():
            moved = (parameter.detach() - local.received[name]).cpu()
            before = kept.get(name, torch.zeros(whole[name].shape, dtype=whole[name].dtype))
            rows = local.shapes.rows(name)
            kept[name] = put_back(before, cut(before, name, rows) - self.alpha * moved, name, rows)
        return {}, kept
