"""To tag words, and to say targets, is learned as in a plain loop with transformers, peft and the model's own loss."""

from pathlib import Path
from typing import Any

import bases
import peft
import pytest
import tiny_models
import torch
import transformers
from datasets import Dataset

from hellora.client.batches import training_batches
from hellora.client.train import train_client
from hellora.core.exchange import ClientTask
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.tasks import Task
from hellora.tasks.seq2seq import Seq2Seq
from hellora.tasks.token_classification import TokenClassification

PAIRS = [
    ("we saw the boat", "near a wave"),
    ("the moon", "is old and near the new star"),
    ("rain", "a cloud and a bird near the wind"),
    ("the old worm", "stone"),
    ("a new field with the seed", "we saw a plough near the root"),
    ("star", "the moon"),
]


def plain(task: ClientTask, kind: Task, base: BaseModel, rows: Dataset, folder: Path) -> tuple[dict[str, Any], float]:
    """The factors, and the head, after the same steps; and the mean loss per supervised token."""
    spec, cls = base.spec, getattr(transformers, type(base.net).__name__)
    net = cls.from_pretrained(str(folder), **({"num_labels": len(bases.TAGS)} if base.head_modules else {}))
    names = [module.name for module in spec.modules]
    config = peft.LoraConfig(r=spec.max_rank, lora_alpha=spec.scale * spec.max_rank, target_modules=names)
    model = peft.get_peft_model(net, config).train()
    inner = model.base_model.model
    trained = {f"{n}.lora_{f}": inner.get_submodule(f"{n}.lora_{f}.default").weight for n in names for f in "AB"}
    trained |= {f"head.{name}": inner.get_parameter(name).requires_grad_() for name in base.head_names}
    with torch.no_grad():
        for name, value in task.adapter.tensors().items():
            trained[name].copy_(value)
    optimizer = torch.optim.AdamW(trained.values(), lr=task.train.lr, weight_decay=task.train.weight_decay)
    encoded = kind.encode(base, rows)
    total, count = 0.0, 0
    for indices in list(training_batches(encoded, task.train, task.seed))[: task.train.steps]:
        batch = kind.collate(base, [encoded.examples[i] for i in indices])
        batch = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        supervised = int((batch["labels"] != -100).sum())
        total, count = total + float(loss.detach()) * supervised, count + supervised
    return {name: parameter.detach() for name, parameter in trained.items()}, total / count


def base_of(kind: Task, folder: Path) -> BaseModel:
    return kind.load(
        ModelSettings(name=str(folder), rank=3, alpha=6.0), bases.TAGS if kind.columns == "tokens" else (), 0
    )


@pytest.mark.parametrize("kind", [TokenClassification(), Seq2Seq()], ids=["words", "seq2seq"])
def test_three_steps_are_those_of_a_plain_loop(kind: Task, tiny_bart: Path, tmp_path: Path) -> None:
    words = kind.columns == "tokens"
    folder = tiny_models.save_bert(tmp_path / "bert", **bases.NO_DROPOUT) if words else tiny_bart
    rows = bases.tagged(6) if words else bases.instructions(*zip(*PAIRS, strict=True))
    base = base_of(kind, folder)
    task = bases.task_of(base, range(base.spec.num_layers), batch_size=2, lr=0.01, steps=3)
    expected, loss = plain(task, kind, base, rows, folder)
    update = train_client(task, base, kind, rows)
    assert update.metrics["loss"] == pytest.approx(loss, abs=1e-5)
    got = update.adapter.tensors()
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=1e-5, rtol=1e-5, msg=name)
