"""A rule of local training sees a task before it is made (`Shapes`), and the model that trains (`Local`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hellora.core.exchange import Declared, Factors, Named, TensorSpec, TrainSettings
from hellora.core.types import AdapterSpec, LoraPair, Mask


@dataclass(frozen=True, eq=False)
class Shapes:
    """Shapes tell of a client's task before it is made. Names are flat: "<module>.lora_A", "head.<parameter>"."""

    spec: AdapterSpec
    trained: Mask  # (layers, max_rank): the client's row
    factors: Factors = "both"
    head: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # shapes by parameter name; {} = it stays frozen

    def trained_tensors(self) -> dict[str, TensorSpec]:
        """Return what the client trains, cut to its rank components."""
        found: dict[str, TensorSpec] = {}
        for module in self.spec.modules:
            if rank := int(self.trained[module.layer].sum()):
                found |= self.pair(module.name, rank, module.d_in, module.d_out)
        return found | {f"head.{name}": TensorSpec(shape) for name, shape in self.head.items()}

    def all_tensors(self) -> dict[str, TensorSpec]:
        """Return both factors of every module, with all components, and the head: what can be trained in some round."""
        found: dict[str, TensorSpec] = {}
        for module in self.spec.modules:
            found[f"{module.name}.lora_A"] = TensorSpec((self.spec.max_rank, module.d_in))
            found[f"{module.name}.lora_B"] = TensorSpec((module.d_out, self.spec.max_rank))
        return found | {f"head.{name}": TensorSpec(shape) for name, shape in self.head.items()}

    def pair(self, name: str, rank: int, d_in: int, d_out: int) -> dict[str, TensorSpec]:
        """Return the factors of one module that are trained."""
        both = {f"{name}.lora_A": TensorSpec((rank, d_in)), f"{name}.lora_B": TensorSpec((d_out, rank))}
        still = {"both": None, "A": f"{name}.lora_B", "B": f"{name}.lora_A"}[self.factors]
        return {key: spec for key, spec in both.items() if key != still}

    def rows(self, name: str) -> Tensor | None:
        """Say which components of the global adapter the client has of a tensor, (rank,) numbers; None for a head's."""
        module, _, factor = name.rpartition(".")
        if factor not in ("lora_A", "lora_B"):
            return None
        return torch.from_numpy(np.flatnonzero(self.trained[self.spec.layer_of[module]]))


@dataclass(frozen=True, eq=False)
class LocalPair:
    """A client holds one module's pair, cut to the components that it trains; a factor not trained is still."""

    A: nn.Parameter  # (rank, d_in)
    B: nn.Parameter  # (d_out, rank)
    scale: float
    start: Callable[[], LoraPair]

    @cached_property
    def received(self) -> LoraPair:
        """Return the pair as it was when training began. It takes memory from when it is first asked for."""
        return self.start()


@dataclass(eq=False)
class Local:
    """A rule sees the model of one client in this form, while it trains. `brief` and `kept` are the rule's own."""

    shapes: Shapes  # of what it trains
    train: TrainSettings
    pairs: Mapping[str, LocalPair]  # by module name, of the modules in which it trains
    head: Mapping[str, nn.Parameter]  # by parameter name; {} where it is frozen
    received_head: Mapping[str, Tensor]
    brief: Named = field(default_factory=dict)  # on the model's device
    kept: Named = field(default_factory=dict)  # on the CPU; {} where it has kept nothing yet
    labels: Callable[[], Tensor | None] = lambda: None  # (examples,): the class of each; None where there are none
    steps: int = 0  # taken so far
    rate_shares: float = 0.0  # the sum of what share of train.lr each of them had; `steps` without a schedule
    loss_sum: float = 0.0  # over all examples (or supervised tokens) of these steps, as the rules made them
    weight_sum: float = 0.0  # how many there were

    def stepped(self, loss: float = 0.0, weight: float = 0.0, share: float = 1.0) -> None:
        """Count a step, with the sum of its losses, the number of examples, and its share of the learning rate."""
        self.steps += 1
        self.loss_sum += loss
        self.weight_sum += weight
        self.rate_shares += share

    @property
    def rate_sum(self) -> float:
        """Return the sum of the learning rates of all steps so far."""
        return self.rate_shares * self.train.lr

    @property
    def spec(self) -> AdapterSpec:
        return self.shapes.spec

    @property
    def trained(self) -> Mask:
        """Return the client's row, (layers, max_rank)."""
        return self.shapes.trained

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Return what trains, by flat name."""
        found: dict[str, nn.Parameter] = {}
        for name, pair in self.pairs.items():
            found |= {f"{name}.lora_A": pair.A, f"{name}.lora_B": pair.B}
        found |= {f"head.{name}": parameter for name, parameter in self.head.items()}
        return {name: parameter for name, parameter in found.items() if parameter.requires_grad}

    @cached_property
    def received(self) -> dict[str, Tensor]:
        """Return what trains, by flat name, as it was when training began."""
        found: dict[str, Tensor] = {}
        for name, pair in self.pairs.items():
            found |= {f"{name}.lora_A": pair.received.A, f"{name}.lora_B": pair.received.B}
        found |= {f"head.{name}": tensor for name, tensor in self.received_head.items()}
        return {name: found[name] for name in self.parameters}


def cut(tensor: Tensor, name: str, rows: Tensor | None) -> Tensor:
    """Cut a tensor with all components to the rows (of A) or columns (of B) that a client trains; keep a head whole."""
    if rows is None:
        return tensor
    return tensor[rows] if name.endswith(".lora_A") else tensor[:, rows]


def put_back(whole: Tensor, part: Tensor, name: str, rows: Tensor | None) -> Tensor:
    """Undo `cut`: return a copy of `whole` with `part` in its place."""
    if rows is None:
        return part.clone()
    result = whole.clone()
    if name.endswith(".lora_A"):
        result[rows] = part
    else:
        result[:, rows] = part
    return result


def prefixed(declared: Mapping[str, Declared]) -> Declared:
    """Join the named tensors of several rules, each with its rule's name in front."""
    return Declared(
        brief={f"{rule}/{name}": spec for rule, each in declared.items() for name, spec in each.brief.items()},
        report={f"{rule}/{name}": spec for rule, each in declared.items() for name, spec in each.report.items()},
        kept={f"{rule}/{name}": spec for rule, each in declared.items() for name, spec in each.kept.items()},
        scratch_bytes=sum(each.scratch_bytes for each in declared.values()),
    )


def add_squared_norms(
    total: npt.NDArray[np.float64], trained: Mapping[str, Sequence[Tensor]], spec: AdapterSpec
) -> npt.NDArray[np.float64]:
    """Add to `total` (layers,) the squared L2 norm of the gradients of each layer, of tensors by their module's name.

    The device is looked at once, not for each gradient. An expert that saw no token has none.
    """
    gradients = {name: [p.grad for p in tensors if p.grad is not None] for name, tensors in trained.items()}
    sums = [gradient.float().square().sum() for of_module in gradients.values() for gradient in of_module]
    values = iter(torch.stack(sums).tolist() if sums else [])
    squares = total.copy()
    for name, of_module in gradients.items():
        squares[spec.layer_of[name]] += sum(next(values) for _ in of_module)
    return squares
