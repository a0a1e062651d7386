"""Laws over the architectures of docs/your-model.md that read texts: what is said of one depends on nothing but it.

Each is saved as somebody else would have it, with a tokenizer whose file says that it pads on the left.
"""

import json
from pathlib import Path
from typing import Any

import bases
import pytest
import tiny_models
import torch
import transformers
from torch import Tensor
from torch.testing import assert_close
from unit.model.test_architectures import LANGUAGE, OWN, SMALL, TEXT

from hellora.model.load import AUTO_CLASSES
from hellora.model.resident import BaseModel
from hellora.model.settings import Kind, ModelSettings
from hellora.tasks import Task
from hellora.tasks.causal_lm import IGNORED

TEXTS = ["rain", "the old boat", "we saw the new moon near a field with the wind", "a star is near", "seed and root"]


def has_head(name: str, task: Task) -> bool:
    """Some decoders have no class with a classification head."""
    classes: Any = transformers.AutoModelForSequenceClassification
    return task is TEXT or transformers.CONFIG_MAPPING[name] in classes._model_mapping


CLASSIFIERS = [
    (name, head)
    for name, (task, _) in SMALL.items()
    for head in {TEXT: (TEXT, OWN), OWN: (OWN,), LANGUAGE: (TEXT, OWN)}.get(task, ())
    if has_head(name, head)
]


def saved(name: str, kind: Kind, folder: Path) -> Path:
    """A small model of large random weights, so that every token matters."""
    config = transformers.CONFIG_MAPPING[name](**SMALL[name][1])
    config.architectures, config.num_labels = [], 3
    config.id2label = dict(enumerate(bases.LABELS))
    torch.manual_seed(0)
    net = AUTO_CLASSES[kind].from_config(config)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    net.save_pretrained(str(folder))
    tiny_models.save_tokenizer(folder)
    said = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(said | {"padding_side": "left", "truncation_side": "left"})
    )
    return folder


def loaded(folder: Path, task: Task, labels: tuple[str, ...] = bases.LABELS) -> BaseModel:
    return task.load(ModelSettings(name=str(folder), rank=2), labels, 0)


@torch.no_grad()
def logits(base: BaseModel, task: Task, texts: list[str], at_once: int) -> Tensor:
    """Of each text, (texts, classes), so many at once."""
    examples = task.encode(base, bases.rows_of(texts)).examples
    parts = [examples[i : i + at_once] for i in range(0, len(examples), at_once)]
    return torch.cat([task.logits(base, task.collate(base, part)) for part in parts])


@pytest.mark.parametrize(("name", "task"), CLASSIFIERS)
def test_a_text_is_what_it_is_whatever_stands_beside_it(name: str, task: Task, tmp_path: Path) -> None:
    base = loaded(saved(name, task.kind(), tmp_path), task)
    assert base.processor.truncation_side == "right"
    alone = logits(base, task, TEXTS, 1)
    assert_close(logits(base, task, TEXTS, len(TEXTS)), alone, atol=1e-4, rtol=1e-4)
    assert_close(logits(base, task, TEXTS[::-1], 2), alone.flip(0), atol=1e-4, rtol=1e-4)
    assert (alone - alone[:1]).abs().max() > 1e-3, "the texts must matter"


@pytest.mark.parametrize("name", [name for name, (task, _) in SMALL.items() if task is LANGUAGE])
def test_an_answer_is_as_likely_whatever_stands_beside_it(name: str, tmp_path: Path) -> None:
    base = loaded(saved(name, "causal_lm", tmp_path), LANGUAGE)
    examples = LANGUAGE.encode(base, bases.instructions(TEXTS, TEXTS[::-1])).examples
    with torch.no_grad():
        together = LANGUAGE.outputs(base, LANGUAGE.collate(base, examples)).loss_sums
        alone = [LANGUAGE.outputs(base, LANGUAGE.collate(base, [example])).loss_sums for example in examples]
    assert_close(together, torch.cat(alone), atol=1e-3, rtol=1e-4)
    assert all(IGNORED in example["labels"] for example in examples)


@pytest.mark.parametrize("name", [name for name, task in CLASSIFIERS if task is OWN])
def test_the_order_of_the_classes_does_not_matter(name: str, tmp_path: Path) -> None:
    """The checkpoint's own classes come in another order in the data, or only some of them do."""
    saved(name, "sequence_classification", tmp_path)
    expected = logits(loaded(tmp_path, OWN), OWN, TEXTS, 2)
    for order in ((2, 0, 1), (1, 0, 2), (2, 1)):
        base = loaded(tmp_path, OWN, tuple(bases.LABELS[i] for i in order))
        assert base.notices == ()
        assert_close(logits(base, OWN, TEXTS, 2), expected[:, list(order)], atol=1e-6, rtol=1e-6)
    assert (expected[:, 0] - expected[:, 1]).abs().max() > 1e-3, "the classes must matter"
