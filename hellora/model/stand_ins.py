"""Modules that stand in the place of a model's own while it is lent out: with LoRA, with constants, or left out."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from hellora.core.algebra import joined
from hellora.core.exchange import Factors
from hellora.core.types import LoraPair


class StandIn(nn.Module):
    """A stand-in computes more than the linear module it stands for, and shows that module's attributes as its own.

    Models ask for them: T5 for `wo.weight.dtype`, Mamba for the bias of a projection, others for `out_features`.
    """

    base: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()  # the names of the attributes that somebody has asked for

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("base", "A", "B"):  # its own, and not there yet
                raise
            self.asked.add(name)
            return getattr(self.base, name)


class LoraLinear(StandIn):
    """A LoRA module computes y = base(x) + scale · B A dropout(x); A (rank, d_in) and B (d_out, rank) train.

    The base is frozen. `factors` may train only one of the two. With `copies`, A and B have a leading dimension: one
    copy of the pair per example, whose gradients are then the gradients of each example's own loss. `batch_dim` is the
    dimension of x that counts the examples; where it is not known, x must be (copies, tokens, d_in).
    """

    def __init__(
        self,
        base: nn.Module,
        A: Tensor,
        B: Tensor,
        scale: float,
        dropout: float,
        factors: Factors = "both",
        copies: int | None = None,
        batch_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.base, self.scale, self.dropout = base, scale, dropout
        self.copies, self.batch_dim = copies, batch_dim
        self.acting: int | None = None  # how many components act, the first ones; None = all: see `truncated`
        if copies is not None:
            A, B = A.repeat(copies, 1, 1), B.repeat(copies, 1, 1)
        self.A, self.B = nn.Parameter(A, requires_grad=factors != "B"), nn.Parameter(B, requires_grad=factors != "A")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        inputs = nn.functional.dropout(x, self.dropout, self.training)
        if self.copies is not None:
            inputs = self.by_example(inputs)
        A, B = self.acting_pair()
        h = inputs.to(A.dtype) @ A.mT
        added = ((h * self.scale) @ B.mT).to(y.dtype)
        return y + (added if self.copies is None else self.as_they_came(added, y))

    def acting_pair(self) -> tuple[Tensor, Tensor]:
        """Return what acts of A and B."""
        if self.acting is None:
            return self.A, self.B
        return self.A[..., : self.acting, :], self.B[..., : self.acting]

    def by_example(self, x: Tensor) -> Tensor:
        """Return the inputs as (copies, inputs of each example, d_in)."""
        dim = self.batch_dim or 0
        known = x.ndim > dim + 1 if self.batch_dim is not None else x.ndim == 3
        if not known or x.shape[dim] != self.copies:
            raise PerExampleError("this module does not see its examples one by one")
        return x.movedim(dim, 0).reshape(x.shape[dim], -1, x.shape[-1])

    def as_they_came(self, outputs: Tensor, like: Tensor) -> Tensor:
        """Undo `by_example`, of outputs that are to have the shape of `like`."""
        dim = self.batch_dim or 0
        return outputs.reshape(like.movedim(dim, 0).shape).movedim(0, dim)


@contextmanager
def truncated(modules: Iterable[LoraLinear], share: float) -> Iterator[None]:
    """Let only the first ⌈share · rank⌉ of its components act in each module while entered; 1 = all of them."""
    changed = [] if share == 1 else list(modules)
    for module in changed:
        module.acting = math.ceil(round(share * module.A.shape[-2], 9))  # 0.28 · 25 is 7, not 7.000000000000001
    try:
        yield
    finally:
        for module in changed:
            module.acting = None


class PerExampleError(RuntimeError):
    """The model merges its batch dimension with another, so per-example copies of the adapter cannot work."""


class Beside(StandIn):
    """Frozen pairs act beside the weight: y = base(x) + Σ scale · B A x.

    The pairs are constants: backward needs no activation for them.
    """

    A: Tensor  # (rank, d_in) of all pairs together
    B: Tensor  # (d_out, rank)

    def __init__(self, base: nn.Module, pairs: Sequence[LoraPair], device: torch.device) -> None:
        super().__init__()
        pair = reduce(joined, pairs)
        self.base, self.scale = base, pair.scale
        self.register_buffer("A", pair.A.to(device))
        self.register_buffer("B", pair.B.to(device))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        h = x.to(self.A.dtype) @ self.A.mT
        return y + ((h * self.scale) @ self.B.mT).to(y.dtype)


class Bypass(nn.Module):
    """A bypass stands in the place of a transformer block that a client leaves out: what comes in goes out (FedRA).

    It answers in the form that its block does. Of a block that returns more than hidden states, what was given to it
    goes out again, and what it makes itself, such as attention weights, is None. Whoever asks it for an attribute, such
    as the kind of attention mask to pass, gets the block's.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = [block]  # in a list, so that it is no submodule
        self.form: list[int | str | None] | None = None  # what follows the hidden states: inputs by place or name
        self.returns_tuple: bool | None = None  # None: not known yet

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.block[0], name)

    def forward(self, *rest: Any, **named: Any) -> Any:
        hidden = first_tensor((*rest, *named.values()))
        if self.returns_tuple is None:  # once
            before = hidden._version
            with torch.no_grad():
                answer = self.block[0](*rest, **named)
            if hidden._version != before or first_tensor(answer).shape != hidden.shape:
                raise RuntimeError(f"{type(self.block[0]).__name__} hands on hidden states of another shape or place")
            self.learn(answer, rest, named)
        if not self.returns_tuple:
            return hidden
        given = by_place(rest, named)
        return (hidden, *(None if place is None else given[place] for place in self.form or ()))

    def learn(self, answer: Any, rest: Sequence[Any], named: Mapping[str, Any]) -> None:
        """Take the form of an answer of this block, or of one of its class, to these inputs."""
        given = by_place(rest, named)
        self.returns_tuple = isinstance(answer, tuple)
        others = answer[1:] if isinstance(answer, tuple) else ()
        self.form = [next((p for p, v in given.items() if v is other and v is not None), None) for other in others]


def by_place(rest: Sequence[Any], named: Mapping[str, Any]) -> dict[int | str, Any]:
    """Return all inputs by their place or name."""
    given: dict[int | str, Any] = {}
    given.update(enumerate(rest))
    given.update(named)
    return given


def first_tensor(values: Any) -> Tensor:
    """Return the first tensor among some values, or the only value."""
    if isinstance(values, Tensor):
        return values
    found = next((value for value in values if isinstance(value, Tensor)), None) if isinstance(values, tuple) else None
    if found is None:
        raise RuntimeError("a block is given, or returns, no hidden states as a tensor")
    return found
