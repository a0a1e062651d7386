"""Rows that can be read as the data of every task, and what of an experiment reads them so."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiny_models
from datasets import Dataset, Image
from federation_site import Site
from PIL import Image as Picture

from hellora.experiments.config import check
from hellora.experiments.experiment import Experiment

TEMPLATE = "{% for m in messages %}{{ m.content + ' [SEP] ' }}{% endfor %}"
CHAT = {"name": "causal_lm", "chat_template": TEMPLATE, "max_length": 40}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # the model, [task] and [data]
    "chat": ("llama", CHAT, {}),
    "packed": ("llama", {**CHAT, "packing": True}, {}),
    "text": ("llama", {"name": "causal_lm"}, {"text": "story"}),
    "preference": ("llama", {"name": "preference", "chat_template": TEMPLATE}, {}),
    "classes": ("bert", {"name": "sequence_classification"}, {"text": "story", "label": "topic"}),
    "numbers": ("bert", {"name": "regression"}, {"text": "story", "label": "worth"}),
    "labels": ("bert", {"name": "multi_label"}, {"text": "story", "label": "topics", "separator": ";"}),
    "words": ("bert", {"name": "token_classification"}, {}),
    "answers": ("bart", {"name": "seq2seq"}, {"prompt": "{asked}", "response": "{told}"}),
    "images": ("vit", {"name": "image_classification"}, {"image": "photo", "label": "topic"}),
}
MODELS = sorted({kind for kind, *_ in CASES.values()})
WORTH = {"sea": 10.5, "sky": -20.0, "soil": 40.0}
COLUMNS = (  # that clients let a server read
    "messages", "story", "chosen", "rejected", "prompt", "asked", "told", "words", "ner_tags", "topic", "topics",
    "worth", "photo", "label",
)  # fmt: skip


def rows_of(count: int, seed: int, owners: Sequence[str]) -> list[dict[str, Any]]:
    """Rows that are dealt out to their owners in turn."""
    texts = tiny_models.sentences(count, seed)
    return [row_of(text, topic, owners[i % len(owners)]) for i, (text, topic) in enumerate(texts)]


def row_of(text: str, topic: str, owner: str) -> dict[str, Any]:
    *words, last = text.split()
    asked, answer = ({"role": "user", "content": " ".join(words)}, {"role": "assistant", "content": last})
    common = [word in tiny_models.COMMON for word in text.split()]
    return {
        "messages": [asked, answer],
        "chosen": [asked, answer],
        "rejected": [asked, {**answer, "content": "the the"}],
        "story": text,
        "asked": " ".join(words),
        "told": last,
        "words": text.split(),
        "ner_tags": ["B-TALK" if each else "O" for each in common],
        "topic": topic,
        "topics": ";".join([topic, *(["chatty"] if sum(common) > 4 else [])]),
        "worth": WORTH[topic] + sum(common),
        "photo": {"bytes": picture(text, topic), "path": None},
        "owner": owner,
    }


def picture(text: str, topic: str) -> bytes:
    """A PNG of 8 × 8 pixels in the topic's colour, which no other text has."""
    noise = np.random.default_rng(sum(text.encode())).integers(0, 60, (8, 8, 3))
    noise[..., list(WORTH).index(topic)] += 180
    out = io.BytesIO()
    Picture.fromarray(noise.astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).cast_column("photo", Image()).to_parquet(str(path))


CLIENTS = {"clinic": (1, 2), "hospital": (2, 4)}  # layers and rank, of a site


class EveryTask(Site):
    """A site whose clients let a server read the columns of every task."""

    kind = "parquet"

    def start_client(self, name: str, *more: object) -> None:
        models = [word for kind in MODELS for word in ("--accept-model", self.folder / kind)]
        super().start_client(name, "--columns", ",".join(COLUMNS), *models, *more)

    def experiment(self, at: Path, **changes: Any) -> Experiment:
        own = changes.pop("data", {})
        table = super().experiment(at, **changes).table
        return check("tasks", {**table, "data": {**table["data"], **own}}, simulated=False)


def site_in(folder: Path) -> EveryTask:
    """A site with models and data for every task, of which nothing runs yet."""
    for kind in MODELS:
        getattr(tiny_models, f"save_{kind}")(folder / kind)
    training = rows_of(40, 3, list(CLIENTS))
    write(folder / "whole" / "train.parquet", training)
    for at in ("whole", "server"):
        write(folder / at / "test.parquet", rows_of(12, 4, ["server"]))
    for name in CLIENTS:
        write(folder / f"{name}.parquet", [row for row in training if row["owner"] == name])
    return EveryTask(folder, folder, CLIENTS)


def changes(case: str, folder: Path) -> dict[str, Any]:
    """What of a site's experiment is of this case: one short round with one of the folder's models."""
    kind, task, data = CASES[case]
    return {
        "rounds": 1,
        "model": {"name": str(folder / kind), "rank": 4},
        "task": task,
        "data": data,
        "method": {"allocator": "random_layers", "dispatcher": "truncate"},
        "train": {"lr": 0.03, "batch_size": 4, "steps": 3},
    }
