"""Rows that can be read as the data of every task, and what of an experiment reads them so."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiny_models
from datasets import Dataset, Image
from PIL import Image as Picture

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


def save_model(kind: str, folder: Path) -> Path:
    """The tiny model of a case, in a folder of its own."""
    save = getattr(tiny_models, f"save_{kind}")
    return folder / kind if (folder / kind).exists() else save(folder / kind)
