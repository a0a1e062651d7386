"""Tasks and answers as bytes: safetensors for the tensors, JSON in its header for the rest. No pickle, bit for bit."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from hellora.algebra import trained_part
from hellora.types import Adapter, AdapterSpec, ClientFailure, ClientTask, ClientUpdate, LoraPair, Policy, TrainSettings


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


def pack_task(task: ClientTask) -> bytes:
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
        "scales": scales,
    }
    return to_bytes({**tensors, "/trained": torch.from_numpy(task.trained)}, fields)


def unpack_task(data: bytes) -> ClientTask:
    tensors, fields = from_bytes(data)
    trained = tensors.pop("/trained").numpy()
    adapter = unflatten(tensors, fields.pop("scales"))
    train, policy = TrainSettings(**fields.pop("train")), Policy(**fields.pop("policy"))
    return ClientTask(adapter=adapter, trained=trained, train=train, policy=policy, **fields)


def pack_answer(answer: ClientUpdate | ClientFailure, task: ClientTask) -> bytes:
    """A factor that the task does not train does not travel."""
    if isinstance(answer, ClientFailure):
        return to_bytes({}, {"failure": asdict(answer)})
    tensors, scales = flatten(answer.adapter)
    if (still := untrained_suffix(task)) is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(still)}
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
    }
    return to_bytes(tensors, fields)


def untrained_suffix(task: ClientTask) -> str | None:
    return {"both": None, "A": ".lora_B", "B": ".lora_A"}[task.factors]


def unpack_answer(data: bytes, task: ClientTask, spec: AdapterSpec) -> ClientUpdate | ClientFailure:
    """The answer to `task`, whole: a factor that did not travel is the one that was sent."""
    tensors, fields = from_bytes(data)
    if "failure" in fields:
        return ClientFailure(**fields["failure"])
    scores = tensors.pop("/layer_scores", None)
    if (still := untrained_suffix(task)) is not None:
        sent = trained_part(task.adapter, task.trained, spec).tensors()
        tensors |= {name: tensor for name, tensor in sent.items() if name.endswith(still)}
    adapter = unflatten(tensors, fields.pop("scales"))
    return ClientUpdate(adapter=adapter, layer_scores=scores, **fields)
