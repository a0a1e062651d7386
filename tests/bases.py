"""Small shared builders around a real model: a tiny base, an adapter that acts, a task for a client."""

import copy
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tiny_models
import torch
from datasets import Dataset

from hellora.client.inference import batch_logits
from hellora.core.algebra import new_adapter
from hellora.core.exchange import ClientTask, TrainSettings
from hellora.core.types import Adapter, Mask
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.tasks import Task
from hellora.tasks.sequence_classification import SequenceClassification

LABELS = tuple(tiny_models.TOPICS)
TAGS = ("O", *(f"{part}-{topic}" for topic in LABELS for part in "BI"))
MEAN_POOLING = SequenceClassification()
NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def texts(count: int, seed: int = 0) -> Dataset:
    """Tiny sentences with their topic's index."""
    rows = tiny_models.sentences(count, seed)
    return Dataset.from_dict({"text": [text for text, _ in rows], "label": [LABELS.index(topic) for _, topic in rows]})


def rows_of(texts: Iterable[str]) -> Dataset:
    """Texts of the class 0, each."""
    found = list(texts)
    return Dataset.from_dict({"text": found, "label": [0] * len(found)})


def instructions(prompts: Iterable[str], responses: Iterable[str]) -> Dataset:
    """Prompts with their responses."""
    return Dataset.from_dict({"prompt": list(prompts), "response": list(responses)})


def tagged(count: int, seed: int = 0) -> Dataset:
    """Sentences as words; a topic's own word is B- of it, or I- right behind another: B-sea, I-sea, …, O."""
    topic_of = {word: topic for topic, words in tiny_models.TOPICS.items() for word in words}
    tokens = [text.split() for text, _ in tiny_models.sentences(count, seed)]
    kinds = [[topic_of.get(word) for word in words] for words in tokens]
    tags = [
        [
            "O" if kind is None else f"{'I' if kind == before else 'B'}-{kind}"
            for before, kind in pairwise([None, *each])
        ]
        for each in kinds
    ]
    return Dataset.from_dict({"tokens": tokens, "tags": [[TAGS.index(tag) for tag in each] for each in tags]})


def prompts(*texts: str) -> Dataset:
    """Prompts alone, as predictions have them."""
    return Dataset.from_dict({"prompt": list(texts)})


def load(folder: Path, kind: Task = MEAN_POOLING, **settings: Any) -> BaseModel:
    """The base of a tiny model folder, rank 3 and scale 2 unless told."""
    return kind.load(ModelSettings(name=str(folder), **{"rank": 3, "alpha": 6.0, **settings}), LABELS, seed=0)


def id_of(base: BaseModel, word: str) -> int:
    """The id of a word."""
    found: int = base.processor.convert_tokens_to_ids(word)
    return found


def acting_adapter(base: BaseModel, seed: int = 0) -> Adapter:
    """A new adapter whose B is not zero, so that every pair changes what the model says."""
    adapter = new_adapter(base.spec, base.initial_head(), seed)
    rng = torch.Generator().manual_seed(seed)
    pairs = {
        name: replace(pair, B=0.3 * torch.randn(pair.B.shape, generator=rng)) for name, pair in adapter.pairs.items()
    }
    return replace(adapter, pairs=pairs)


def row_of(base: BaseModel, layers: Iterable[int]) -> Mask:
    """The row (layers, max_rank) that trains these layers whole."""
    row = np.zeros((base.spec.num_layers, base.spec.max_rank), dtype=bool)
    row[list(layers)] = True
    return row


def mixed_row(base: BaseModel) -> Mask:
    """A row with a frozen layer, a whole one, and some components (not the first ones) of the others."""
    row = np.zeros((base.spec.num_layers, base.spec.max_rank), dtype=bool)
    row[1:, -1] = True
    row[1] = True
    row[3:, 0] = True
    return row


def task_of(
    base: BaseModel, layers: Iterable[int] | Mask, adapter: Adapter | None = None, seed: int = 7, **settings: Any
) -> ClientTask:
    """Round 0, client 0."""
    trained = layers if isinstance(layers, np.ndarray) else row_of(base, layers)
    return ClientTask(
        round=0,
        client=0,
        seed=seed,
        adapter=adapter or acting_adapter(base),
        trained=trained,
        train=TrainSettings(**{"batch_size": 4, **settings}),
    )


def with_dense_weights(base: BaseModel, adapter: Adapter) -> Any:
    """A copy of the base's network with W + scale · B A written into its weights: what an adapter means."""
    net = copy.deepcopy(base.net)
    with torch.no_grad():
        for name, pair in adapter.pairs.items():
            linear = net.get_submodule(name)
            delta = pair.scale * torch.einsum("or,ri->oi", pair.B, pair.A)
            linear.weight += delta if isinstance(linear, torch.nn.Linear) else delta.T
    return net


def logits(adapter: Adapter, base: BaseModel, task: Task, rows: Dataset, batch_size: int) -> torch.Tensor:
    """(rows, classes), of rows of one class each, in their order."""
    found = list(batch_logits(adapter, base, task, task.encode(base, rows), batch_size))
    return torch.cat([of_batch for _, of_batch in found])[np.argsort(np.concatenate([rows for rows, _ in found]))]
