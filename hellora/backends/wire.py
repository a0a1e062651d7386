"""Tasks and answers as bytes: safetensors for the tensors, JSON in its header for the rest. No pickle, bit for bit."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from hellora.types import Adapter, ClientFailure, ClientTask, ClientUpdate, LoraPair, TrainSettings


def flatten(adapter: Adapter, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, float]]:
    """An adapter as named tensors, and the scale of each pair by module name."""
    tensors = {f"{prefix}{name}": value for name, value in adapter.tensors().items()}
    return tensors, {name: pair.scale for name, pair in adapter.pairs.items()}


def unflatten(tensors: Mapping[str, Tensor], scales: Mapping[str, float], prefix: str = "") -> Adapter:
    """The inverse of `flatten`; other tensors are left alone. Raises KeyError where one is absent."""
    pairs = {
        name: LoraPair(tensors[f"{prefix}{name}.lora_A"], tensors[f"{prefix}{name}.lora_B"], scale)
        for name, scale in scales.items()
    }
    start, in_pairs = f"{prefix}head.", {f"{prefix}{name}" for name in Adapter(pairs).tensors()}
    head = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start) and n not in in_pairs}
    return Adapter(pairs, head)


def to_bytes(tensors: Mapping[str, Tensor], fields: Mapping[str, Any]) -> bytes:
    return save({n: t.contiguous() for n, t in tensors.items()}, metadata={"fields": json.dumps(fields)})


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
        "scales": scales,
    }
    return to_bytes({**tensors, "/trained": torch.from_numpy(task.trained)}, fields)


def unpack_task(data: bytes) -> ClientTask:
    tensors, fields = from_bytes(data)
    trained = tensors.pop("/trained").numpy()
    adapter = unflatten(tensors, fields.pop("scales"))
    return ClientTask(adapter=adapter, trained=trained, train=TrainSettings(**fields.pop("train")), **fields)


def pack_answer(answer: ClientUpdate | ClientFailure) -> bytes:
    if isinstance(answer, ClientFailure):
        return to_bytes({}, {"failure": asdict(answer)})
    tensors, scales = flatten(answer.adapter)
    if answer.layer_scores is not None:
        tensors["/layer_scores"] = answer.layer_scores
    fields = {
        "round": answer.round,
        "client": answer.client,
        "num_examples": answer.num_examples,
        "num_tokens": answer.num_tokens,
        "metrics": dict(answer.metrics),
        "scales": scales,
    }
    return to_bytes(tensors, fields)


def unpack_answer(data: bytes) -> ClientUpdate | ClientFailure:
    tensors, fields = from_bytes(data)
    if "failure" in fields:
        return ClientFailure(**fields["failure"])
    scores = tensors.pop("/layer_scores", None)
    adapter = unflatten(tensors, fields.pop("scales"))
    return ClientUpdate(adapter=adapter, layer_scores=scores, **fields)
