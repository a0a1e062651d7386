"""Take training steps of a base without values, each with another row of an allocation, and say what they hold, as
coefficients of the examples and the rank, and the operations of each block."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hellora.budgets.coefficients import ActivationPolicy, Floats
from hellora.client.train import numerics
from hellora.core.exchange import Policy, TrainSettings
from hellora.core.types import Adapter, LoraPair, Mask, ModuleSpec
from hellora.costing.tracing import HeldBytes, StepTrace, trace_step
from hellora.methods.strategies import Method
from hellora.model.resident import BaseModel
from hellora.model.stand_ins import Bypass, first_tensor
from hellora.tasks import Task


@dataclass(frozen=True)
class Shape:
    """A client's largest batch has so many examples of so many tokens (images have as many as the model makes)."""

    examples: int
    tokens: int


@dataclass(frozen=True, eq=False)
class Tracer:
    """A tracer takes steps of a base without values, as `client.train_client` would take them."""

    base: BaseModel
    kind: Task
    shape: Shape
    method: Method
    train: TrainSettings
    device: str
    mode: AbstractContextManager[Any]

    def head(self) -> dict[str, Tensor]:
        """Return zeros in the place of the head's parameters, by name, in float32."""
        return {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.base.head_parameters()}

    def adapter(self, rows: Mask, policy: Policy) -> Adapter:
        """Make what `rows` train, and nothing that would be merged: copies of weights are there before a step."""
        spec = self.base.spec
        ranks = rows.sum(axis=1) if policy.merge else np.full(spec.num_layers, spec.max_rank)

        def pair(module: ModuleSpec) -> LoraPair:
            rank = int(ranks[module.layer])
            A, B = (torch.zeros(size, device=self.base.device) for size in ((rank, module.d_in), (module.d_out, rank)))
            return LoraPair(A, B, spec.scale)

        with self.mode:
            return Adapter({m.name: pair(m) for m in spec.modules if ranks[m.layer]}, self.head())

    def step(self, rows: Mask, policy: Policy, examples: int) -> StepTrace:
        """Trace what one step holds that trains `rows` (layers, max_rank)."""
        base, method = self.base, self.method
        with base.adapted(
            self.adapter(rows, policy),
            rows,
            method.trained_head != "frozen",
            factors=method.trains if method.trains in ("A", "B") else "both",
            bypass=method.dispatcher.sends(rows, base.spec).bypass,
            policy=policy,
            cut=policy.merge,
        ):

            def forward() -> tuple[Tensor, Any]:
                batch = self.kind.blank_batch(base, examples, self.shape.tokens)
                with numerics(base, policy, self.train, torch.Generator(base.device)):
                    outputs = self.kind.outputs(base, batch)
                return outputs.loss_sums.sum(), batch

            with self.mode:
                return trace_step(base, forward, self.device)

    def row(self, layers: Sequence[int], rank: int) -> Mask:
        rows = np.zeros((self.base.spec.num_layers, self.base.spec.max_rank), dtype=bool)
        rows[list(layers), :rank] = True
        return rows

    def traced(self, layers: Sequence[int], how: ActivationPolicy, by_rank: bool = True) -> "Fit":
        """Fit a row by what a step holds at two batch sizes and, where the rank matters, at two ranks."""
        policy = Policy(how.recompute, how.int8_activations, how.bf16)
        many = max(self.shape.examples, 2)
        # Few are on the same side as many, where fewer would lack what is only ever held once: a whole chunk of logits.
        # What is predicted of still fewer is then too much by no more than that.
        even = self.kind.even_from(self.base, self.shape.tokens)
        few = 1 if even > many else min(even, many - 1)
        full, least = self.base.spec.max_rank, 1
        a = self.step(self.row(layers, full), policy, few)
        b = self.step(self.row(layers, full), policy, many)
        c = self.step(self.row(layers, least), policy, many) if by_rank and full > least else b
        return Fit(a, b, c, few, many, full, least)

    def operations(self) -> tuple[Floats, float, int, int]:
        """Count one example's forward pass: operations of each block, of the rest; bytes, tokens between two blocks."""
        base, kind = self.base, self.kind
        blocks = [base.net.get_submodule(name) for name in base.spec.layers]
        counter = FlopCounterMode(display=False)
        marks = np.zeros((len(blocks), 2))
        left_out = [module for module in base.net.modules() if isinstance(module, Bypass)]
        hidden: list[Tensor] = []
        hooks = []
        for j, block in enumerate(blocks):
            hooks.append(block.register_forward_pre_hook(note(marks, j, 0, counter)))
            hooks.append(block.register_forward_hook(note(marks, j, 1, counter)))
            alike = [b for b in left_out if type(b.block[0]) is type(block)]
            hooks.append(block.register_forward_hook(tell(alike), with_kwargs=True))
        hooks.append(blocks[0].register_forward_hook(lambda _m, _i, out: hidden.append(first_tensor(out))))
        try:
            with torch.no_grad(), self.mode, HeldBytes(), counter:
                kind.outputs(base, kind.blank_batch(base, 1, self.shape.tokens))
        finally:  # a hook that stayed would hold on to what goes out of a block
            for hook in hooks:
                hook.remove()
        each = marks[:, 1] - marks[:, 0]
        tokens = hidden[0].shape[1] if hidden[0].ndim == 3 else self.shape.tokens
        return each, float(counter.get_total_flops() - each.sum()), hidden[0].nbytes, tokens


@dataclass(frozen=True, eq=False)
class Fit:
    """A fit turns three traces of a row, in examples and rank (few, full), (many, full) and (many, least), into
    coefficients."""

    a: StepTrace
    b: StepTrace
    c: StepTrace
    few: int
    many: int
    full: int
    least: int

    def coefficients(self, name: str) -> Floats:
        """Return coefficients (4, …) of 1, n, r and n·r; what grows with the rank grows with the examples, too."""
        a, b, c = (np.asarray(getattr(trace, name), dtype=np.float64) for trace in (self.a, self.b, self.c))
        by_rank = (b - c) / (self.many * max(self.full - self.least, 1))
        by_examples = (b - a) / (self.many - self.few) - by_rank * self.full
        constant = b - self.many * (by_examples + by_rank * self.full)
        return np.stack([constant, by_examples, np.zeros_like(b), by_rank])


def note(marks: Floats, j: int, which: int, counter: FlopCounterMode) -> Any:
    def hook(*_: Any) -> None:
        marks[j, which] = counter.get_total_flops()

    return hook


def tell(left_out: Sequence[Bypass]) -> Any:
    """Make a hook that lets blocks which are left out answer as one of their class does that comes before them."""

    def hook(_module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        for block in left_out:
            block.learn(output, inputs, named)

    return hook
