"""Count a model's cost coefficients (`cost.py`). A few steps without values (`tracing.py`), each with another row, say
what each block holds in every part that it can play; no weights are needed, and nothing is computed. A model whose
steps need values (it routes tokens by them, or looks for one) takes the same steps for real, with zeros for weights.

    every block trains    first: block 0     trained: the others
    block 0 trains        frozen: the others
    block j trains        first: block j
    nothing trains        off: all

each at two batch sizes and two ranks. Blocks of the same class and shapes cost the same, so that
two of each kind are kept and the others are taken out: a model of 80 equal blocks is counted as fast as one of 2.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hellora.budgets.coefficients import ActivationPolicy, BlockCoefficients, Floats, Part, StepCoefficients
from hellora.budgets.cost import CostModel
from hellora.core.codec import num_scales
from hellora.core.errors import InputError
from hellora.core.exchange import Factors, TrainSettings, WireFormat
from hellora.core.types import AdapterSpec, Mask
from hellora.costing.traced_rows import Fit, Shape, Tracer
from hellora.costing.tracing import without_values
from hellora.methods.local import Shapes
from hellora.methods.strategies import Method, rank_shares
from hellora.model.resident import BaseModel
from hellora.model.stand_ins import Bypass
from hellora.tasks import Task

ALIKE = 2  # blocks of a kind that are traced
BY_BLOCK = ("keep", "forward", "release", "backward")
AT_ENDS = ("start", "enter", "head", "end", "head_backward")


@dataclass(frozen=True, eq=False)
class Sample:
    """A sample is a model with few blocks of each kind, without values; it costs per block what the whole one does."""

    base: BaseModel
    kinds: tuple[int, ...]  # (layers of the whole model,): the kind of each block
    of_kind: tuple[tuple[int, ...], ...]  # the sample's blocks of each kind


def calibrate(
    base: BaseModel,
    kind: Task,
    shape: Shape,
    method: Method,
    train: TrainSettings,
    device: str = "cpu",
    wire: WireFormat = "fp32",
) -> CostModel:
    """Count the cost coefficients of a base without weights (meta device), which is changed and of no further use, for
    batches of `shape`, on a device of the kind "cpu" or "cuda".
    """
    spec, weights, buffers = base.spec, base.num_bytes, base.buffers_bytes
    width = base.net.get_submodule(spec.modules[0].name).get_parameter("weight").element_size()
    found = first_that_works(base, kind, shape, method, train, device)
    heads = {} if method.trained_head == "frozen" else {name: tuple(t.shape) for name, t in found.tracer.head().items()}
    return CostModel(
        spec=spec,
        steps=CountedCoefficients(found.tracer, found.sample),
        weights_bytes=weights,
        buffers_bytes=buffers,
        weight_item_bytes=width,
        head_scales=sum(map(num_scales, heads.values())),
        head_sizes=tuple(math.prod(shape) for shape in heads.values()),
        optimizer_numbers=int(train.momentum > 0) if train.optimizer == "sgd" else 2,
        states_in_8_bits=train.optimizer == "adamw_8bit",
        block_operations=found.operations[[found.sample.of_kind[block][-1] for block in found.sample.kinds]],
        head_operations=found.rest,
        hidden_bytes=found.hidden_bytes,
        tokens=found.tokens,
        factors=method.trains if method.trains in ("A", "B") else "both",
        sends=lambda row: method.dispatcher.sends(row, spec),
        declares=lambda row: method.declares(shapes_of(row, spec, method, heads)),
        travels=travelling_factors(method),
        sends_head=method.head == "aggregate",
        wire=wire,
        trains_below=base.trains_below and bool(heads),
        measured=found.measured,
        passes=len(rank_shares(method.local_training)),
    )


@dataclass(frozen=True, eq=False)
class Traceable:
    """A traceable base takes steps without values, or with zeros; the operations are those of a forward pass."""

    tracer: Tracer
    sample: Sample
    operations: Floats  # (blocks of the sample,)
    rest: float
    hidden_bytes: int
    tokens: int
    measured: bool  # with zeros


def first_that_works(
    base: BaseModel, kind: Task, shape: Shape, method: Method, train: TrainSettings, device: str
) -> Traceable:
    """Find the first way to take steps that the model's code bears.

    Blocks that hand on more than hidden states cannot be taken out; steps that need values are taken with zeros.
    """
    spec = base.spec
    where = device if device == "cpu" or torch.cuda.is_available() else "cpu"
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    why = ""
    modes: tuple[AbstractContextManager[Any], ...] = (fake, nullcontext())
    for mode, alike in product(modes, (ALIKE, spec.num_layers)):
        try:
            base.spec = spec
            sample_of(base, spec.num_layers)  # every block in its place
            base.spec = spec
            for module in (base.net, base.head) if base.head is not None else (base.net,):
                without_values(module, mode, where)
            sample = sample_of(base, alike)
            tracer = Tracer(base, kind, shape, method, train, device, mode)
            return Traceable(tracer, sample, *tracer.operations(), measured=mode is not fake)
        except InputError:
            raise
        except Exception as error:  # whatever a model's code raises
            why = in_one_line(error)
    raise InputError(
        f"what training costs cannot be counted for this model ({why}): remove the budgets in bytes and seconds"
    )


def shapes_of(row: Mask, spec: AdapterSpec, method: Method, head: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Describe a client's task before it is made, in the kind of round in which it trains the most."""
    return Shapes(spec, row, method.trains if method.trains in ("A", "B") else "both", head)


def in_one_line(error: Exception) -> str:
    """Say in one line, for a person, what a model's code raised."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def travelling_factors(method: Method) -> tuple[Factors, ...]:
    """Say what of the trained pairs goes up: in each kind of round the factors that are trained and shared."""
    moving = {method.moving(round) for round in (0, 1)}
    names: dict[frozenset[str], Factors] = {frozenset("AB"): "both", frozenset("A"): "A", frozenset("B"): "B"}
    return tuple(names[factors] for factors in sorted(moving, key=sorted) if factors) or ("both",)


def sample_of(base: BaseModel, alike: int) -> Sample:
    """Leave at most `alike` blocks of a kind in the base; the others let their input pass."""
    spec = base.spec
    blocks = [whole(base.net.get_submodule(name)) for name in spec.layers]
    signatures = [(type(block), tuple(tuple(p.shape) for p in block.parameters())) for block in blocks]
    distinct = list(dict.fromkeys(signatures))
    kinds = tuple(distinct.index(signature) for signature in signatures)
    kept: list[int] = []
    of_kind: list[list[int]] = [[] for _ in distinct]
    for layer, kind in enumerate(kinds):
        keep = len(of_kind[kind]) < alike
        owner, _, leaf = spec.layers[layer].rpartition(".")
        setattr(base.net.get_submodule(owner), leaf, blocks[layer] if keep else Bypass(blocks[layer]))
        if keep:
            of_kind[kind].append(len(kept))
            kept.append(layer)
    modules = tuple(replace(m, layer=kept.index(m.layer)) for m in spec.modules if m.layer in kept)
    few = AdapterSpec(modules, tuple(spec.layers[layer] for layer in kept), spec.max_rank, spec.scale)
    base.spec = few
    return Sample(base, kinds, tuple(map(tuple, of_kind)))


def whole(block: nn.Module) -> nn.Module:
    """Return the block itself, also where a bypass stands in its place."""
    return block.block[0] if isinstance(block, Bypass) else block


class CountedCoefficients(dict[ActivationPolicy, StepCoefficients]):
    """A model has coefficients under every way of keeping activations, each counted when it is first asked for."""

    def __init__(self, tracer: Tracer, sample: Sample) -> None:
        super().__init__()
        self.tracer, self.sample = tracer, sample

    def __missing__(self, how: ActivationPolicy) -> StepCoefficients:
        try:
            self[how] = self.plain(how) if how.recompute == "none" else self.recomputed(how)
        except Exception as error:  # blocks that cannot be run again
            if how == ActivationPolicy():
                raise
            self[how] = replace(self[ActivationPolicy()], refused=in_one_line(error))
        return self[how]

    @property
    def every(self) -> Sequence[int]:
        return range(self.tracer.base.spec.num_layers)

    @property
    def typical(self) -> list[int]:
        """Return the sample's block that stands for each kind: one that is not the first, if there is any."""
        return [blocks[-1] for blocks in self.sample.of_kind]

    def plain(self, how: ActivationPolicy) -> StepCoefficients:
        """Fit without recomputation."""
        none, whole = self.tracer.traced([], how, by_rank=False), self.tracer.traced(self.every, how)
        blocks: dict[Part, BlockCoefficients] = {
            "off": self.blocks([(none, j) for j in self.typical]),
            "first": self.firsts(how, whole),
            "frozen": self.frozen(how),
            "trained": self.trained(whole),
        }
        # Autograd keeps nothing of blocks that are off; but whoever calls them may hold on to what goes into the first.
        blocks["off"].keep[:] = 0.0
        blocks["off"].keep[:, 0] = none.coefficients("keep")[:, 0]
        ends: dict[str, Any] = {name: np.maximum(none.coefficients(name), whole.coefficients(name)) for name in AT_ENDS}
        return StepCoefficients(blocks, **ends)

    def recomputed(self, how: ActivationPolicy) -> StepCoefficients:
        """Fit with recomputation: blocks that are run again keep less; the others are as without it."""
        before = self[replace(how, recompute="frozen" if how.recompute == "all" else "none")]
        if how.recompute == "frozen":
            return replace(before, blocks={**before.blocks, "frozen": self.frozen(how)})
        whole = self.tracer.traced(self.every, how)
        blocks = {**before.blocks, "first": self.firsts(how, whole), "trained": self.trained(whole)}
        return replace(before, blocks=blocks)

    def frozen(self, how: ActivationPolicy) -> BlockCoefficients:
        """Fit every block as one that only hands a gradient down: what it holds does not depend on the rank below it.

        Nobody asks for block 0, which is never above one that trains, unless something below it does.
        """
        below = self.tracer.base.trains_below
        lowest = self.tracer.traced([] if below else [0], how, by_rank=False)
        found = self.blocks([(lowest, j) for j in self.typical])
        return self.on_top(found, lowest) if below else found

    def trained(self, whole: "Fit") -> BlockCoefficients:
        """Fit every block as one that trains and hands a gradient down."""
        found = self.blocks([(whole, j) for j in self.typical])
        return self.on_top(found, whole) if self.tracer.base.trains_below else found

    def firsts(self, how: ActivationPolicy, whole: "Fit") -> BlockCoefficients:
        """Fit every block as the shallowest that trains. Only block 0 gets what the blocks' caller may hold on to."""
        coefficients = self.blocks([(self.tracer.traced([j], how) if j else whole, j) for j in self.typical])
        return self.on_top(coefficients, whole)

    def on_top(self, coefficients: BlockCoefficients, fit: "Fit") -> BlockCoefficients:
        """Return coefficients with those of block 0 in a fit, for it has what is below it besides."""
        found = {name: getattr(coefficients, name).copy() for name in BY_BLOCK}
        for name, values in found.items():
            values[:, 0] = fit.coefficients(name)[:, 0]
        return BlockCoefficients(**found)

    def blocks(self, found: Sequence[tuple["Fit", int]]) -> BlockCoefficients:
        """Collect the coefficients of all layers from a trace and a block of the sample for each kind."""
        by_kind = [{name: coefficients.coefficients(name)[:, j] for name in BY_BLOCK} for coefficients, j in found]
        return BlockCoefficients(
            *(np.stack([by_kind[kind][name] for kind in self.sample.kinds], axis=1) for name in BY_BLOCK)
        )
