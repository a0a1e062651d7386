"""Tasks and answers as bytes: safetensors for the tensors, JSON in its header for the rest. No pickle.

As fp32 everything comes back bit for bit. As bf16 or int8 (`codec.py`) the tensors of an adapter are rounded: of a task
its values, of an answer the *delta*, trained minus received, whose numbers are smaller, and so are its errors. The
client subtracts what it received, rounded; the server adds to what it sent, exact. So the server's adapter is never
rounded: a change that is smaller than the rounding of a value is not lost, and errors of the way down do not pile up
from round to round (Philippenko & Dieuleveut, arXiv 2102.12528, call it a preserved central model).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from hellora.codec import decode, encode
from hellora.sharing import answer_part
from hellora.types import (
    Adapter,
    AdapterSpec,
    ClientFailure,
    ClientTask,
    ClientUpdate,
    LoraPair,
    Policy,
    TrainSettings,
    WireFormat,
)

OVERHEAD = 2**20  # bytes that names, shapes and metrics of an answer may take
Types = tuple[type, ...]
ANSWER_FIELDS: Mapping[str, Types] = {
    "round": (int,),
    "client": (int,),
    "num_examples": (int,),
    "num_tokens": (int, type(None)),
    "metrics": (dict,),
    "rank": (int, type(None)),
    "scales": (dict,),
    "delta": (bool,),
}
FAILURE_FIELDS: Mapping[str, Types] = {"client": (int,), "kind": (str,), "reason": (str,)}


class WireError(ValueError):
    """Bytes that are no answer to the task that was sent."""


def flatten(adapter: Adapter, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, float]]:
    """An adapter as named tensors, and the scale of each pair by module name."""
    tensors = {f"{prefix}{name}": value for name, value in adapter.tensors().items()}
    return tensors, {name: pair.scale for name, pair in adapter.pairs.items()}


def unflatten(tensors: Mapping[str, Tensor], scales: Mapping[str, float], prefix: str = "") -> Adapter:
    """The inverse of `flatten`; other tensors are left alone. Raises KeyError where one is absent."""
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
    """The tensors as safetensors takes them: contiguous, and no two with the same storage (a head of prototypes)."""
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def to_bytes(tensors: Mapping[str, Tensor], fields: Mapping[str, Any]) -> bytes:
    return save(on_their_own(tensors), metadata={"fields": json.dumps(fields)})


def from_bytes(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    length = int.from_bytes(data[:8], "little")  # the safetensors format: header length, JSON header, tensors
    fields = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["fields"])
    return load(data), fields


def pack_task(task: ClientTask, format: WireFormat = "fp32") -> bytes:
    tensors, scales = flatten(task.adapter)
    fields = {
        "round": task.round,
        "client": task.client,
        "seed": task.seed,
        "train": asdict(task.train),
        "head": task.head,
        "report_layer_scores": task.report_layer_scores,
        "factors": task.factors,
        "bypass": task.bypass,
        "policy": asdict(task.policy),
        "spare_bytes": task.spare_bytes,
        "scales": scales,
    }
    return to_bytes({**encode(tensors, format, task.seed), "/trained": torch.from_numpy(task.trained)}, fields)


def unpack_task(data: bytes) -> ClientTask:
    tensors, fields = from_bytes(data)
    tensors = decode(tensors)
    trained = tensors.pop("/trained").numpy()
    adapter = unflatten(tensors, fields.pop("scales"))
    train, policy = TrainSettings(**fields.pop("train")), Policy(**fields.pop("policy"))
    return ClientTask(adapter=adapter, trained=trained, train=train, policy=policy, **fields)


def as_received(task: ClientTask, format: WireFormat) -> ClientTask:
    """The task as its client sees it."""
    return task if format == "fp32" else unpack_task(pack_task(task, format))


def pack_answer(
    answer: ClientUpdate | ClientFailure, task: ClientTask, spec: AdapterSpec, format: WireFormat = "fp32"
) -> bytes:
    """The answer to `task` as its client received it. A factor that the task does not train does not travel."""
    if isinstance(answer, ClientFailure):
        return to_bytes({}, {"failure": asdict(answer)})
    tensors, scales = flatten(answer.adapter)
    if (still := untrained_suffix(task)) is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(still)}
    if format != "fp32":
        received = answer_part(task, spec).tensors()
        tensors = {name: difference(tensor, received[name]) for name, tensor in tensors.items()}
    tensors = encode(tensors, format, task.seed)
    if answer.layer_scores is not None:
        tensors["/layer_scores"] = answer.layer_scores
    fields = {
        "round": answer.round,
        "client": answer.client,
        "num_examples": answer.num_examples,
        "num_tokens": answer.num_tokens,
        "metrics": dict(answer.metrics),
        "rank": answer.rank,
        "scales": scales,
        "delta": format != "fp32",
    }
    return to_bytes(tensors, fields)


def difference(tensor: Tensor, start: Tensor) -> Tensor:
    """tensor − start, in the dtype of both."""
    return (tensor.double() - start.double()).to(tensor.dtype)


def moved(start: Tensor, delta: Tensor) -> Tensor:
    """start + delta, in the dtype of both. Raises WireError where they have not the same shape."""
    if delta.shape != start.shape:
        raise WireError(f"a delta has shape {tuple(delta.shape)}, expected {tuple(start.shape)}")
    return (start.double() + delta.double()).to(delta.dtype)


def untrained_suffix(task: ClientTask) -> str | None:
    return {"both": None, "A": ".lora_B", "B": ".lora_A"}[task.factors]


def read_answer(data: bytes, task: ClientTask, spec: AdapterSpec) -> ClientUpdate | ClientFailure:
    """What `unpack_answer` returns; whoever sends anything else is rejected."""
    try:
        return unpack_answer(data, task, spec)
    except WireError as error:
        return ClientFailure(task.client, "rejected", str(error))


def unpack_answer(data: bytes, task: ClientTask, spec: AdapterSpec) -> ClientUpdate | ClientFailure:
    """The answer to `task` as it was sent, whole: a factor that did not travel is the one that was sent.

    Raises:
        WireError: the bytes, whatever they are, are no answer of the task's client.
    """
    sent = answer_part(task, spec)
    if len(data) > (limit := 2 * sent.num_bytes + OVERHEAD):
        raise WireError(f"its answer has {len(data)} bytes, at most {limit} were expected")
    try:
        return answer_from(data, task, sent.tensors())
    except WireError:
        raise
    except Exception as error:  # whatever can be wrong with bytes
        why = " ".join(str(error).split())[:200]
        raise WireError(f"its answer cannot be read: {type(error).__name__}: {why}") from error


def answer_from(data: bytes, task: ClientTask, sent: Mapping[str, Tensor]) -> ClientUpdate | ClientFailure:
    """The answer to `task`; `sent` is what it must have, name by name, as it was sent."""
    tensors, fields = from_bytes(data)
    if isinstance(fields, dict) and fields.keys() == {"failure"}:
        check_fields(fields["failure"], FAILURE_FIELDS, task)
        if fields["failure"]["kind"] not in ("missing", "rejected"):
            raise WireError(f"it failed in an unknown way: {fields['failure']['kind'][:40]!r}")
        return ClientFailure(**fields["failure"])
    check_fields(fields, ANSWER_FIELDS, task)
    for name in ("metrics", "scales"):
        check_numbers(name, fields[name])
    scores = tensors.pop("/layer_scores", None)
    tensors = decode(tensors)
    if fields.pop("delta"):
        tensors = {name: moved(sent[name], tensor) for name, tensor in tensors.items()}
    if (still := untrained_suffix(task)) is not None:
        tensors |= {name: tensor for name, tensor in sent.items() if name.endswith(still)}
    adapter = unflatten(tensors, fields.pop("scales"))
    if unknown := sorted(tensors.keys() - adapter.tensors().keys()):
        raise WireError(f"unknown tensor {unknown[0]}")
    return ClientUpdate(adapter=adapter, layer_scores=scores, **fields)


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
    """True but for whole numbers of more than 64 bits."""
    return type(value) is not int or -(2**63) <= value < 2**63
