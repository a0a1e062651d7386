"""Write tasks and answers as bytes: safetensors for the tensors, JSON in its header for the rest, and no pickle.

As fp32 everything comes back bit for bit. As bf16 or int8 (`codec.py`) the tensors of an adapter are rounded: of a task
its values, of an answer the *delta*, trained minus received, whose numbers are smaller, and so are its errors. The
client subtracts what it received, rounded; the server adds to what it sent, exact. So the server's adapter is never
rounded: a change that is smaller than the rounding of a value is not lost, and errors of the way down do not pile up
from round to round (Philippenko & Dieuleveut, arXiv 2102.12528, call it a preserved central model).

What is a client's own (`sharing.crosses`) no format rounds: a client of a network keeps it, and where the server of a
simulation does, it ends with the same bits.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from hellora.core.codec import Way, decode, encode
from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate, Policy, TrainSettings, WireFormat
from hellora.core.state import owned, select
from hellora.core.types import Adapter, AdapterSpec, LoraPair
from hellora.methods.sharing import answer_part, crosses, goes_down, is_of, stays

BRIEF, REPORT, KEPT = "/brief", "/report", "/kept"  # in front of named tensors, which no format rounds
OVERHEAD = 2**20  # bytes that names, shapes and metrics of an answer may take
Types = tuple[type, ...]
ANSWER_FIELDS: Mapping[str, Types] = {
    "round": (int,),
    "attempt": (int,),
    "client": (int,),
    "num_examples": (int,),
    "num_tokens": (int, type(None)),
    "metrics": (dict,),
    "scales": (dict,),
    "delta": (bool,),
}
FAILURE_FIELDS: Mapping[str, Types] = {"client": (int,), "kind": (str,), "reason": (str,)}


class WireError(ValueError):
    """The bytes are no answer to the task that was sent."""


def flatten(adapter: Adapter, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return an adapter as named tensors, and the scale of each pair by module name."""
    tensors = {f"{prefix}{name}": value for name, value in adapter.tensors().items()}
    return tensors, {name: pair.scale for name, pair in adapter.pairs.items()}


def unflatten(tensors: Mapping[str, Tensor], scales: Mapping[str, float], prefix: str = "") -> Adapter:
    """Undo `flatten`, and leave other tensors alone. Raise KeyError where one is absent."""
    mine = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    pairs = {n: LoraPair(mine.pop(f"{n}.lora_A"), mine.pop(f"{n}.lora_B"), scale) for n, scale in scales.items()}
    residual = {
        n: LoraPair(mine.pop(f"{n}.residual_A"), mine.pop(f"{n}.residual_B"), 1.0)
        for n in scales
        if f"{n}.residual_A" in mine
    }
    ranks = sorted({int(name.split(".")[1]) for name in mine if name.startswith("prototype.")})
    prototypes = {rank: unflatten(mine, scales, f"prototype.{rank}.") for rank in ranks}
    head = {name.removeprefix("head."): tensor for name, tensor in mine.items() if name.startswith("head.")}
    return Adapter(pairs, head, residual, prototypes)


def on_their_own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors as safetensors takes them: contiguous, and no two with the same storage (a head of prototypes)."""
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def to_bytes(tensors: Mapping[str, Tensor], fields: Mapping[str, Any]) -> bytes:
    return save(on_their_own(tensors), metadata={"fields": json.dumps(fields)})


def from_bytes(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    length = int.from_bytes(data[:8], "little")  # the safetensors format: header length, JSON header, tensors
    fields = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["fields"])
    return load(data), fields


def pack_task(task: ClientTask, format: WireFormat = "fp32") -> bytes:
    """Pack a task; what its client keeps for itself does not travel, but for the first head that it has."""
    tensors, scales = flatten(task.adapter)
    tensors = {name: tensor for name, tensor in tensors.items() if goes_down(name, task)}
    fields = {
        "round": task.round,
        "rounds": task.rounds,
        "attempt": task.attempt,
        "sums": task.sums,
        "client": task.client,
        "seed": task.seed,
        "train": asdict(task.train),
        "head": task.head,
        "factors": task.factors,
        "shares": task.shares,
        "private": task.private,
        "cut": task.cut,
        "bypass": task.bypass,
        "kept_version": task.kept_version,
        "policy": asdict(task.policy),
        "spare_bytes": task.spare_bytes,
        "scales": scales,
    }
    named = {**owned(task.brief, BRIEF), **owned(task.kept, KEPT), "/trained": torch.from_numpy(task.trained)}
    return to_bytes({**encoded(tensors, task, format, "down"), **named}, fields)


def encoded(tensors: Mapping[str, Tensor], task: ClientTask, format: WireFormat, way: Way) -> dict[str, Tensor]:
    """Return an adapter's tensors as they travel: what is shared in the format, the rest as it is."""
    exact = {name: tensor for name, tensor in tensors.items() if not crosses(name, task)}
    return encode({n: t for n, t in tensors.items() if n not in exact}, format, task.seed, way) | exact


def unpack_task(data: bytes) -> ClientTask:
    """Unpack a task. A factor that did not come along, for it is the client's own, stands as an empty one."""
    tensors, fields = from_bytes(data)
    brief, kept = taken(tensors, BRIEF), taken(tensors, KEPT)
    tensors = decode(tensors)
    trained = tensors.pop("/trained").numpy()
    scales = fields.pop("scales")
    adapter = unflatten(with_blanks(tensors, scales) if fields["private"] else tensors, scales)
    train, policy = TrainSettings(**fields.pop("train")), Policy(**fields.pop("policy"))
    return ClientTask(adapter=adapter, trained=trained, train=train, policy=policy, brief=brief, kept=kept, **fields)


def with_blanks(tensors: Mapping[str, Tensor], modules: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors with an empty factor, of the rank of the other, for each that is not among them."""
    found = dict(tensors)
    for name in modules:
        A, B = tensors.get(f"{name}.lora_A"), tensors.get(f"{name}.lora_B")
        if A is None and B is not None:
            found[f"{name}.lora_A"] = torch.zeros(B.shape[1], 0)
        if B is None and A is not None:
            found[f"{name}.lora_B"] = torch.zeros(0, A.shape[0])
    return found


def taken(tensors: dict[str, Tensor], owner: str) -> dict[str, Tensor]:
    """Take the tensors of one owner out of `tensors`; return them under its own names."""
    found = select(tensors, owner)
    for name in found:
        del tensors[f"{owner}/{name}"]
    return found


def as_received(task: ClientTask, format: WireFormat) -> ClientTask:
    """Return the task as its client sees it."""
    return task if format == "fp32" else unpack_task(pack_task(task, format))


def pack_answer(
    answer: ClientUpdate | ClientFailure, task: ClientTask, spec: AdapterSpec, format: WireFormat = "fp32"
) -> bytes:
    """Pack the answer to `task`, as its client received it. Neither a factor that the task does not train travels, nor
    what its client keeps for itself.
    """
    if isinstance(answer, ClientFailure):
        return to_bytes({}, {"failure": asdict(answer)})
    tensors, scales = flatten(answer.adapter)
    tensors = {n: tensor for n, tensor in tensors.items() if is_of(n, task.factors) and not stays(n, task)}
    if format != "fp32":
        received = answer_part(task, spec).tensors()
        tensors = {n: difference(t, received[n]) if crosses(n, task) else t for n, t in tensors.items()}
    tensors = encoded(tensors, task, format, "up") | owned(answer.report, REPORT) | owned(answer.kept, KEPT)
    fields = {
        "round": answer.round,
        "attempt": answer.attempt,
        "client": answer.client,
        "num_examples": answer.num_examples,
        "num_tokens": answer.num_tokens,
        "metrics": dict(answer.metrics),
        "scales": scales,
        "delta": format != "fp32",
    }
    return to_bytes(tensors, fields)


def difference(tensor: Tensor, start: Tensor) -> Tensor:
    """Return tensor − start, in the dtype of both."""
    return (tensor.double() - start.double()).to(tensor.dtype)


def moved(start: Tensor, delta: Tensor) -> Tensor:
    """Return start + delta, in the dtype of both. Raise WireError where they have not the same shape."""
    if delta.shape != start.shape:
        raise WireError(f"a delta has shape {tuple(delta.shape)}, expected {tuple(start.shape)}")
    return (start.double() + delta.double()).to(delta.dtype)


def most_bytes(task: ClientTask, sent: Adapter) -> int:
    """Return the most bytes that an answer may have; `sent` is what it must have, as it was sent."""
    named = task.declared.bytes_up + sum(spec.num_bytes for spec in task.declared.kept.values())
    return 2 * sent.num_bytes + named + OVERHEAD


def read_answer(data: bytes, task: ClientTask, spec: AdapterSpec) -> ClientUpdate | ClientFailure:
    """Return what `unpack_answer` returns, or reject whoever sends anything else."""
    try:
        return unpack_answer(data, task, spec)
    except WireError as error:
        return ClientFailure(task.client, "rejected", str(error))


def unpack_answer(data: bytes, task: ClientTask, spec: AdapterSpec) -> ClientUpdate | ClientFailure:
    """Unpack the answer to `task` as it was sent, whole: a factor that did not travel is the one that was sent.

    Raises:
        WireError: the bytes, whatever they are, are no answer of the task's client.
    """
    sent = answer_part(task, spec)
    if len(data) > (limit := most_bytes(task, sent)):
        raise WireError(f"its answer has {len(data)} bytes, at most {limit} were expected")
    try:
        return answer_from(data, task, sent.tensors())
    except WireError:
        raise
    except Exception as error:  # whatever can be wrong with bytes
        why = " ".join(str(error).split())[:200]
        raise WireError(f"its answer cannot be read: {type(error).__name__}: {why}") from error


def answer_from(data: bytes, task: ClientTask, sent: Mapping[str, Tensor]) -> ClientUpdate | ClientFailure:
    """Read the answer to `task`; `sent` is what it must have, name by name, as it was sent."""
    tensors, fields = from_bytes(data)
    if isinstance(fields, dict) and fields.keys() == {"failure"}:
        check_fields(fields["failure"], FAILURE_FIELDS, task)
        if fields["failure"]["kind"] not in ("missing", "rejected"):
            raise WireError(f"it failed in an unknown way: {fields['failure']['kind'][:40]!r}")
        return ClientFailure(**fields["failure"])
    check_fields(fields, ANSWER_FIELDS, task)
    for name in ("metrics", "scales"):
        check_numbers(name, fields[name])
    report, kept = taken(tensors, REPORT), taken(tensors, KEPT)
    tensors = decode(tensors)
    if private := sorted(name for name in tensors if stays(name, task)):
        raise WireError(f"its answer has {private[0]}, which is to stay with it")
    if fields.pop("delta"):
        tensors = {n: moved(sent[n], tensor) if crosses(n, task) else tensor for n, tensor in tensors.items()}
    tensors |= {n: tensor for n, tensor in sent.items() if not is_of(n, task.factors) or stays(n, task)}
    adapter = unflatten(tensors, fields.pop("scales"))
    if unknown := sorted(tensors.keys() - adapter.tensors().keys()):
        raise WireError(f"unknown tensor {unknown[0]}")
    return ClientUpdate(adapter=adapter, report=report, kept=kept, **fields)


def check_fields(fields: Any, expected: Mapping[str, Types], task: ClientTask) -> None:
    """Raise WireError unless these are the expected fields, each of its types, of the task's client."""
    if not isinstance(fields, dict) or fields.keys() != expected.keys():
        raise WireError(f"its answer must have the fields {', '.join(expected)}")
    for name, types in expected.items():
        if type(fields[name]) not in types or not is_small(fields[name]):
            raise WireError(f"{name} is {str(fields[name])[:40]!r}")
    if fields["client"] != task.client:
        raise WireError(f"it answered for client {fields['client']}")


def check_numbers(name: str, values: Mapping[str, Any]) -> None:
    """Raise WireError unless these are numbers."""
    for key, value in values.items():
        if type(value) not in (int, float) or not is_small(value):
            raise WireError(f"{name} has {str(value)[:40]!r} for {key[:40]!r}")


def is_small(value: Any) -> bool:
    """Return True but for whole numbers of more than 64 bits."""
    return type(value) is not int or -(2**63) <= value < 2**63
