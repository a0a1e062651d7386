"""Tell what is shared between server and clients, what stays with a client, and how many bytes travel."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hellora.core.algebra import components, trained_components, trained_part
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


def private_part(task: ClientTask, update: ClientUpdate, before: Adapter, spec: AdapterSpec) -> dict[str, Tensor]:
    """Return what of its own a client keeps for its next task, by flat name: its head, the factor that is not shared.

    That factor has all rank components of the global adapter: what the client trained, and the rest as in `before`,
    its adapter until now.
    """
    own: dict[str, Tensor] = {}
    if task.head == "local":
        own |= {f"head.{name}": value for name, value in update.adapter.head.items()}
    if task.shares != "both":
        for module in spec.modules:
            if (new := update.adapter.pairs.get(module.name)) is None:
                continue
            old, rows = before.pairs[module.name], torch.tensor(task.trained[module.layer])
            if task.shares == "A":
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


def with_own(task: ClientTask, mine: Adapter, spec: AdapterSpec) -> ClientTask:
    """Return a task with what is its client's own, of the client's adapter `mine`, in place of what did not come along.

    `mine` has all rank components; a pair that came has all of them, too, or those that the client trains.
    """
    pairs = dict(task.adapter.pairs)
    for name, pair in task.adapter.pairs.items():
        row = torch.tensor(task.trained[spec.layer_of[name]])
        own = mine.pairs[name] if pair.rank == spec.max_rank else components(mine.pairs[name], row)
        if task.shares != "both":
            pairs[name] = replace(pair, B=own.B) if task.shares == "A" else replace(pair, A=own.A)
    head = mine.head if task.head == "local" else task.adapter.head
    return replace(task, adapter=replace(task.adapter, pairs=pairs, head=head))


def with_trained(task: ClientTask, trained: Adapter, spec: AdapterSpec) -> Adapter:
    """Return the adapter that a client has after a task: what it was sent, with what it trained in its place."""
    pairs = dict(task.adapter.pairs)
    for name, new in trained.pairs.items():
        old = pairs[name]
        rows = trained_components(old, task.trained[spec.layer_of[name]], task.cut)
        A = old.A.masked_scatter(rows[:, None].expand_as(old.A), new.A)
        pairs[name] = LoraPair(A, old.B.masked_scatter(rows[None, :].expand_as(old.B), new.B), old.scale)
    return replace(task.adapter, pairs=pairs, head={**task.adapter.head, **trained.head})


def answer_part(task: ClientTask, spec: AdapterSpec) -> Adapter:
    """Return what the answer to a task must have, name by name, as it was sent."""
    part = trained_part(task.adapter, task.trained, spec, task.cut)
    return part if task.head == "frozen" else replace(part, head=task.adapter.head)


def delta_norm(adapter: Adapter, sent: Adapter, task: ClientTask | None = None) -> float:
    """Return the L2 norm of an update's whole delta: trained minus received, over all its tensors; of an answer to
    `task`, over those that are shared.

    Raises KeyError where a tensor was not sent.
    """
    start = sent.tensors()
    trained = {name: t for name, t in adapter.tensors().items() if task is None or crosses(name, task)}
    squares = [float((t.double() - start[name].double()).square().sum()) for name, t in trained.items()]
    return math.sqrt(math.fsum(squares))


@dataclass(frozen=True, slots=True)
class Crossing:
    """A client's task and its answer take these bytes, as tensors travel, without names."""

    down: int
    up: int


def crossing(
    adapter: Adapter,
    sent: Sent,
    shapes: Shapes,
    method: Method,
    declared: Declared,
    wire: WireFormat,
    first: bool = False,
) -> Crossing:
    """Count the bytes of a client's task and of its answer, from its row alone: `sent` is what its dispatcher declares
    to send of the global `adapter`, and `shapes` what it trains of it. A client's own head is sent once, as the `first`
    that it has.
    """
    down = crossing_bytes(sent_shapes(adapter, sent, shapes.spec), method, wire)
    down += sum(tensor.nbytes for tensor in adapter.head.values()) if first and method.head == "local" else 0
    up = crossing_bytes(shapes.trained_tensors(), method, wire)
    return Crossing(down + declared.bytes_down, up + declared.bytes_up)


def crossing_bytes(tensors: Mapping[str, TensorSpec], method: Method, wire: WireFormat) -> int:
    """Count the bytes of those of an adapter's tensors that travel between server and client."""
    return wire_bytes((spec for name, spec in tensors.items() if crosses(name, method)), wire)


def crosses(name: str, by: Method | ClientTask) -> bool:
    """Return True for a tensor, by flat name, that is shared: a client's own head and its own factor stay with it."""
    return by.head != "local" if name.startswith("head.") else is_of(name, by.shares)


def stays(name: str, task: ClientTask) -> bool:
    """Return True for a tensor, by flat name, that must not be in the answer to a task: its client keeps it."""
    return task.private and not crosses(name, task)


def goes_down(name: str, task: ClientTask) -> bool:
    """Return True for a tensor, by flat name, that a client is sent with a task: of what is its own nothing but a head,
    for as long as it has none.
    """
    return not stays(name, task) or (name.startswith("head.") and task.kept_version is None)


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
