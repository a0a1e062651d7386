"""A process has one model, which is lent to a client and comes back untouched.

`BaseModel.adapted` puts LoRA modules where a client trains, merges everything else of the adapter into a copy of the
weight it belongs to (or keeps it beside the weight), and on leaving puts the very same parameters back. Buffers, which
a module's forward may write to, are lent as copies. The base is never written to.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from hellora.core.algebra import components, delta_weight, trained_components
from hellora.core.exchange import Factors, Policy
from hellora.core.types import Adapter, AdapterSpec, LoraPair, Mask
from hellora.model.fingerprint import fingerprint, persistent
from hellora.model.memory import held_bytes, weights_bytes
from hellora.model.output_layer import OutputLayer
from hellora.model.policies import recasting, recomputed_layers, recomputing, with_frozen_statistics
from hellora.model.stand_ins import Beside, Bypass, LoraLinear
from hellora.model.whole import places_of, stands_below

STATISTICS = frozenset({"running_mean", "running_var", "num_batches_tracked"})  # buffers, of BatchNorm and its kind


@dataclass(frozen=True, eq=False)
class AdaptedModel:
    """An adapted model is a base model while it is lent out; its LoRA modules and head parameters can be read back."""

    lora: Mapping[str, LoraLinear]
    head: Mapping[str, nn.Parameter]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return what the optimizer gets: the parameters that require a gradient, and no other."""
        lora = [p for module in self.lora.values() for p in (module.A, module.B)]
        return [p for p in (*lora, *self.head.values()) if p.requires_grad]

    def read(self) -> Adapter:
        """Read the trained values, on the CPU, detached from the model."""
        pairs = {n: LoraPair(to_cpu(m.A), to_cpu(m.B), m.scale) for n, m in self.lora.items()}
        return Adapter(pairs, {n: to_cpu(p) for n, p in self.head.items() if p.requires_grad})


def to_cpu(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU, without what it came from."""
    return tensor.detach().to("cpu", copy=True)


class BaseModel:
    """The one model of a process has a Hugging Face network, the head on top of it, and what turns data into batches.

    `head` is a module of hellora's own (mean pooling's linear layer); where the network has its own head, `head` is
    None. `head_modules` names the modules of the network's own head, and those that are `saved`, which train whole, too
    (see `whole.py`). `processor` is the tokenizer or image processor.
    """

    notices: tuple[str, ...] = ()  # what a person should know of how it was loaded
    one_length = False  # whether padding acts on texts, so that those of a batch must be equally long

    def __init__(
        self,
        net: Any,
        spec: AdapterSpec,
        processor: Any,
        *,
        dropout: float = 0.0,
        head: nn.Module | None = None,
        head_modules: tuple[str, ...] = (),
        saved: tuple[str, ...] = (),
    ) -> None:
        self.net, self.spec, self.processor, self.dropout, self.head = net, spec, processor, dropout, head
        self.head_modules = (*head_modules, *(name for name in saved if name not in head_modules))
        self.output = OutputLayer()  # of a language model
        self.places = places_of(net, head, self.head_modules)
        self.head_names = tuple(self.places)
        self.drawn = frozenset(places_of(net, None, head_modules))  # of the network's own head
        self.trains_below = stands_below(net, saved)  # what trains whole needs gradients through all blocks
        self.dtype: torch.dtype = next(net.parameters()).dtype  # of the weights; adapters and heads are float32

    @property
    def device(self) -> torch.device:
        """Return the device that the weights are on."""
        device: torch.device = next(self.net.parameters()).device
        return device

    @property
    def num_bytes(self) -> int:
        """Count the bytes of all weights, the head's too."""
        return weights_bytes(self.net, self.head)

    @property
    def buffers_bytes(self) -> int:
        """Count the bytes of the buffers, which are lent as copies."""
        return held_bytes(self.net.buffers())

    def fingerprint(self) -> str:
        """Return a digest of the base, without its head and what else the checkpoint had no weights for.

        Two sides of a deployment that load different weights by mistake tell so by it, and so does whoever uses an
        adapter later.
        """
        drawn = self.drawn.union(getattr(self.net, "drawn_names", ()))
        return fingerprint((name, weight) for name, weight in persistent(self.net) if name not in drawn)

    def to(self, device: torch.device | str) -> "BaseModel":
        """Move the model to a device, and return it."""
        self.net.to(device)
        if self.head is not None:
            self.head.to(device)
        return self

    def share_memory(self) -> "BaseModel":
        """Move every weight to shared memory, so that processes on the CPU hold one copy."""
        self.net.share_memory()
        if self.head is not None:
            self.head.share_memory()
        return self

    def initial_head(self) -> dict[str, Tensor]:
        """Copy the head as it was loaded or drawn, in float32, to the CPU."""
        return {name: to_cpu(parameter).float() for name, parameter in self.head_parameters()}

    def head_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what trains whole, by name, as it is in the model now."""
        for name, ((root, place), *_) in self.places.items():
            yield name, root.get_parameter(place)

    @contextmanager
    def adapted(
        self,
        adapter: Adapter,
        trained: Mask | None = None,
        train_head: bool = False,
        copies: int | None = None,
        factors: Factors = "both",
        bypass: bool = False,
        policy: Policy = Policy(),
        cut: bool = False,
        batch_dims: Mapping[str, int] = MappingProxyType({}),
    ) -> Iterator[AdaptedModel]:
        """Lend the model out with `adapter` on it.

        Rank components that `trained` (layers, max_rank) switches on become LoRA modules with gradients; all others,
        and the residual, are merged into a copy of their module's weight, or kept beside it (`policy.merge`; always, if
        the weight is quantised, for a sum would be rounded again). Blocks with something to train are in train mode,
        the rest in eval mode, or left out (`bypass`). Blocks that `policy.recompute` names keep only their input for
        backward. In a pair that is `cut` there is only what trains. `copies` gives every example of a batch its own
        copy of the pairs (per-example gradients); `batch_dims` says which dimension of a module's input, by its name,
        counts the examples.
        """
        loan = Loan(self)
        try:
            loan.put_buffers()
            for module in self.spec.modules:
                if module.name in adapter.pairs:
                    row = None if trained is None else trained[module.layer]
                    examples = (copies, batch_dims.get(module.name))
                    loan.put_pair(module.name, adapter, row, policy.merge, examples, factors, cut)
            loan.put_head(adapter.head, train_head)
            if bypass and trained is not None:
                loan.put_bypasses(trained)
            if copies is None:
                self.train_mode(trained, train_head)
            with self.keeping(policy, trained, self.trains_below and train_head):
                yield AdaptedModel(loan.lora, loan.head)
        finally:
            loan.undo()
            self.net.eval()

    @contextmanager
    def keeping(self, policy: Policy, trained: Mask | None, below: bool = False) -> Iterator[None]:
        """Make forward passes keep for backward what `policy` says, of a model that trains `trained`, and what is
        `below` all blocks."""
        layers = [] if trained is None else recomputed_layers(policy.recompute, trained, below)
        blocks = [self.net.get_submodule(self.spec.layers[layer]) for layer in layers]
        recast = recasting(self.net) if policy.bf16 else nullcontext()
        with recomputing(self.net, blocks), recast, with_frozen_statistics(self.net):
            yield

    def train_mode(self, trained: Mask | None, train_head: bool) -> None:
        """Put the blocks that train anything, and a network's own head where it trains, in train mode (dropout on).

        Modules that keep statistics of what they have seen (BatchNorm) stay in eval mode: these belong to the base.
        """
        if trained is not None:
            for name, rows in zip(self.spec.layers, trained, strict=True):
                self.net.get_submodule(name).train(bool(rows.any()))
        if train_head:
            for name in self.head_modules:
                self.net.get_submodule(name).train()
        for module in self.net.modules():
            if not STATISTICS.isdisjoint(module._buffers):
                module.eval()


class Loan:
    """A loan knows what stands in a lent model in the place of its own parameters and modules, and puts those back."""

    def __init__(self, base: BaseModel) -> None:
        self.base = base
        self.lora: dict[str, LoraLinear] = {}
        self.head: dict[str, nn.Parameter] = {}
        self.own: list[tuple[nn.Module, str, Any]] = []  # owner, attribute, and what was there before
        self.before = [held for module in base.net.modules() for held in contents(module)]

    def put(self, root: nn.Module, name: str, value: Any) -> None:
        """Put a value where `root` has its parameter or module of that name."""
        place, _, leaf = name.rpartition(".")
        owner = root.get_submodule(place)
        self.own.append((owner, leaf, getattr(owner, leaf)))
        setattr(owner, leaf, value)

    def undo(self) -> None:
        """Put back what was there: the last replacement first, for one may stand on another."""
        for owner, leaf, value in reversed(self.own):
            setattr(owner, leaf, value)
        for held, content in self.before:  # a forward pass may have made buffers, or replaced modules (BigBird's does)
            held.clear()
            held.update(content)

    def put_buffers(self) -> None:
        """Lend a copy of every buffer, for a forward pass may write to it. What is tied stays tied."""
        copies: dict[int, Tensor] = {}
        for owner in self.base.net.modules():
            for leaf, buffer in owner._buffers.items():
                if buffer is not None:
                    owner._buffers[leaf] = copies.setdefault(id(buffer), buffer.clone())

    def put_pair(
        self,
        name: str,
        adapter: Adapter,
        row: Mask | None,
        merge: bool,
        examples: tuple[int | None, int | None],
        factors: Factors,
        cut: bool,
    ) -> None:
        """Put the adapter on one module: what `row` (max_rank,) trains as a LoRA module, the rest as constants.

        `examples` are those that get a copy each, and the dimension that counts them.
        """
        net, device, pair = self.base.net, self.base.device, adapter.pairs[name]
        rows = torch.zeros(pair.rank, dtype=torch.bool)
        if row is not None and row.any():
            rows = trained_components(pair, row, cut)
        linear = net.get_submodule(name)
        frozen = [components(pair, ~rows)] if not rows.all() else []
        frozen += [adapter.residual[name]] if name in adapter.residual else []
        if frozen and merge and linear.get_parameter("weight").is_floating_point():
            self.put(linear, "weight", nn.Parameter(merged(linear, frozen), requires_grad=False))
        elif frozen:
            linear = Beside(linear, frozen, device)
            self.put(net, name, linear)
        if rows.any():
            part = pair if rows.all() else components(pair, rows)
            A, B = (t.to(device, copy=True) for t in (part.A, part.B))
            self.lora[name] = LoraLinear(linear, A, B, pair.scale, self.base.dropout, factors, *examples)
            self.put(net, name, self.lora[name])

    def put_head(self, head: Mapping[str, Tensor], trains: bool) -> None:
        """Put the adapter's head on the model."""
        for name, places in self.base.places.items():
            self.head[name] = nn.Parameter(head[name].to(self.base.device, copy=True), requires_grad=trains)
            for root, place in places:
                self.put(root, place, self.head[name])

    def put_bypasses(self, trained: Mask) -> None:
        """Leave out every block that trains nothing."""
        for name, row in zip(self.base.spec.layers, trained, strict=True):
            if not row.any():
                self.put(self.base.net, name, Bypass(self.base.net.get_submodule(name)))


def contents(module: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the dictionaries of a module (of its attributes, parameters, buffers, modules), each with its content."""
    return [(held, dict(held)) for held in (vars(module), module._parameters, module._buffers, module._modules)]


def merged(linear: nn.Module, pairs: Sequence[LoraPair]) -> Tensor:
    """Copy the linear module's weight with each ΔW added, in the weight's own dtype and layout.

    What is not an nn.Linear is GPT-2's Conv1D, which stores its weight as (d_in, d_out).
    """
    weight: Tensor = linear.get_parameter("weight").detach()
    on_device = [LoraPair(pair.A.to(weight.device), pair.B.to(weight.device), pair.scale) for pair in pairs]
    delta = torch.stack([delta_weight(pair) for pair in on_device]).sum(0) if pairs[1:] else delta_weight(on_device[0])
    return (weight + (delta if isinstance(linear, nn.Linear) else delta.T)).to(weight.dtype)
