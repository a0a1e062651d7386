"""What is shared between server and clients, what stays with a client, and how many bytes travel."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hellora.core.algebra import trained_part
from hellora.core.codec import wire_bytes
from hellora.core.types import Adapter, AdapterSpec, ClientTask, ClientUpdate, Factors, LoraPair, WireFormat
from hellora.methods.protocols import Answers, Method


def shared(answers: Answers, method: Method, adapter: Adapter, spec: AdapterSpec) -> Answers:
    """The answers as the aggregator may see them: what is not shared stands as in `adapter`, the server's own."""
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
    """What of its own a client keeps for its next task, by flat name: its head, the factor that is not shared.

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
    """An adapter with a client's own tensors, by flat name, in place of the shared ones."""
    if not own:
        return adapter
    pairs = {
        name: LoraPair(own.get(f"{name}.lora_A", pair.A), own.get(f"{name}.lora_B", pair.B), pair.scale)
        for name, pair in adapter.pairs.items()
    }
    return replace(adapter, pairs=pairs, head={n: own.get(f"head.{n}", t) for n, t in adapter.head.items()})


def answer_part(task: ClientTask, spec: AdapterSpec) -> Adapter:
    """What the answer to a task must have, name by name, as it was sent."""
    part = trained_part(task.adapter, task.trained, spec)
    return part if task.head == "frozen" else replace(part, head=task.adapter.head)


def delta_norm(adapter: Adapter, sent: Adapter) -> float:
    """The L2 norm of an update's whole delta: trained minus received, over all its tensors.

    Raises KeyError where a tensor was not sent.
    """
    start = sent.tensors()
    squares = [float((t.double() - start[name].double()).square().sum()) for name, t in adapter.tensors().items()]
    return math.sqrt(math.fsum(squares))


def travelling_bytes(adapter: Adapter, method: Method, factors: Factors, wire: WireFormat) -> int:
    """What of an adapter crosses the seam: not what stays with its client, not a factor that is not trained."""
    crossing = []
    for name, tensor in adapter.tensors().items():
        kept_head = method.head == "local" and name.startswith("head.")
        factor = {".lora_A": "A", ".lora_B": "B"}.get(name[-7:], "both")
        if not kept_head and all("both" in (factor, which) or factor == which for which in (method.shares, factors)):
            crossing.append(tensor)
    return wire_bytes(crossing, wire)
