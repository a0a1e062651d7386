"""FedProx (Li et al., arXiv 1812.06127) as a user would write it: the gradient of (μ/2) ‖θ − θ^t‖²."""

from dataclasses import dataclass
from typing import Any

from hellora.core.exchange import Declared
from hellora.methods import Local, LocalTraining, Shapes


@dataclass(frozen=True)
class Near(LocalTraining):
    """Pulls what a client trains towards what it received."""

    pull: float = 0.1  # μ

    def declares(self, shapes: Shapes) -> Declared:
        received = sum(spec.num_bytes for spec in shapes.trained_tensors().values())
        return Declared(scratch_bytes=2 * received)

    def gradients(self, local: Local, carry: Any) -> Any:
        for name, parameter in local.parameters.items():
            if parameter.grad is not None:
                parameter.grad += self.pull * (parameter.detach() - local.received[name])
        return carry
