"""Tell what is shared between server and clients, what stays with a client, and how many bytes travel."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hellora.core.algebra import trained_part
from hellora.core.codec import wire_bytes
from hellora.core.exchange import ClientTask, ClientUpdate, Declared, Factors, TensorSpec, WireFormat
from hellora.core.types import Adapter, AdapterSpec, LoraPair, Sent
from hellora.methods.local import Shapes
from hellora.methods.strategies import Answers, Method


def shared(answers: Answers, method: Method, adapter: Adapter, spec: AdapterSpec) -> Answers:
    """Return the answers as the aggregator may see them: what is not shared stands as in `adapter`, the server's."""
    if method.head == "aggregate" and method.shares == "both":
        return answers
    seen = []
    for task, update in answers:
        head = update.adapter.head if method.head == "aggregate" else adapter.head
        pairs = dict(update.adapter.pairs)
        if method.shares != "both":
            for name, mine in trained_part(adapter, task.trained, spec).pairs.items():
                pairs[name] = replace(pairs[name], B=mine.B) if method.shares == "A" else replace(pairs[name], A=mine.A)
        seen.append((task, replace(update, adapter=Adapter(pairs, head))))
    return seen


def private_part(
    task: ClientTask, update: ClientUpdate, method: Method, before: Adapter, spec: AdapterSpec
) -> dict[str, Tensor]:
    """Return what of its own a client keeps for its next task, by flat name: its head, the factor that is not shared.

    That factor has all rank components of the global adapter: what the client trained, and the rest as in `before`,
    its adapter until now.
    """
    own: dict[str, Tensor] = {}
    if method.head == "local":
        own |= {f"head.{name}": value for name, value in update.adapter.head.items()}
    if method.shares != "both":
        for module in spec.modules:
            if (new := update.adapter.pairs.get(module.name)) is None:
                continue
            old, rows = before.pairs[module.name], torch.tensor(task.trained[module.layer])
            if method.shares == "A":
                own[f"{module.name}.lora_B"] = old.B.masked_scatter(rows[None, :].expand_as(old.B), new.B)
            else:
                own[f"{module.name}.lora_A"] = old.A.masked_scatter(rows[:, None].expand_as(old.A), new.A)
    return own


def with_private(adapter: Adapter, own: Mapping[str, Tensor]) -> Adapter:
    """Return an adapter with a client's own tensors, by flat name, in place of the shared ones."""
    if not own:
        return adapter
    pairs = {
        name: LoraPair(own.get(f"{name}.lora_A", pair.A), own.get(f"{name}.lora_B", pair.B), pair.scale)
        for name, pair in adapter.pairs.items()
    }
    return replace(adapter, pairs=pairs, head={n: own.get(f"head.{n}", t) for n, t in adapter.head.items()})


def answer_part(task: ClientTask, spec: AdapterSpec) -> Adapter:
    """Return what the answer to a task must have, name by name, as it was sent."""
    part = trained_part(task.adapter, task.trained, spec, task.cut)
    return part if task.head == "frozen" else replace(part, head=task.adapter.head)


def delta_norm(adapter: Adapter, sent: Adapter) -> float:
    """Return the L2 norm of an update's whole delta: trained minus received, over all its tensors.

    Raises KeyError where a tensor was not sent.
    """
    start = sent.tensors()
    squares = [float((t.double() - start[name].double()).square().sum()) for name, t in adapter.tensors().items()]
    return math.sqrt(math.fsum(squares))


@dataclass(frozen=True, slots=True)
class Crossing:
    """A client's task and its answer take these bytes, as tensors travel, without names."""

    down: int
    up: int


def crossing(
    adapter: Adapter, sent: Sent, shapes: Shapes, method: Method, declared: Declared, wire: WireFormat
) -> Crossing:
    """Count the bytes of a client's task and of its answer, from its row alone: `sent` is what its dispatcher declares
    to send of the global `adapter`, and `shapes` what it trains of it.
    """
    down = crossing_bytes(sent_shapes(adapter, sent, shapes.spec), method, wire)
    up = crossing_bytes(shapes.trained_tensors(), method, wire)
    return Crossing(down + declared.bytes_down, up + declared.bytes_up)


def crossing_bytes(tensors: Mapping[str, TensorSpec], method: Method, wire: WireFormat) -> int:
    """Count the bytes of those of an adapter's tensors that travel between server and client."""
    return wire_bytes((spec for name, spec in tensors.items() if crosses(name, method)), wire)


def crosses(name: str, method: Method) -> bool:
    """Return True for a tensor, by flat name, that is shared: a client's own head and its own factor stay with it."""
    return method.head != "local" if name.startswith("head.") else is_of(name, method.shares)


def is_of(name: str, factors: Factors) -> bool:
    """Return True for a tensor, by flat name, that is one of these factors, or no factor at all."""
    factor = {".lora_A": "A", ".lora_B": "B"}.get(name[-7:])
    return factor is None or factors in ("both", factor)


def answered_bytes(update: ClientUpdate, factors: Factors, method: Method, wire: WireFormat) -> int:
    """Count the bytes of an answer that arrived; a factor that was not trained did not travel."""
    tensors = {n: TensorSpec.of(t) for n, t in update.adapter.tensors().items() if is_of(n, factors)}
    return crossing_bytes(tensors, method, wire) + sum(tensor.nbytes for tensor in update.report.values())


def sent_shapes(adapter: Adapter, sent: Sent, spec: AdapterSpec) -> dict[str, TensorSpec]:
    """Return the shapes of what a client receives of a global adapter, by flat name."""
    found = {f"head.{name}": TensorSpec.of(tensor) for name, tensor in adapter.head.items()}
    for module in spec.modules:
        if rank := int(sent.ranks[module.layer]):
            found[f"{module.name}.lora_A"] = TensorSpec((rank, module.d_in))
            found[f"{module.name}.lora_B"] = TensorSpec((module.d_out, rank))
            if (rest := adapter.residual.get(module.name)) is not None:
                found[f"{module.name}.residual_A"] = TensorSpec.of(rest.A)
                found[f"{module.name}.residual_B"] = TensorSpec.of(rest.B)
    return found
