"""Training as plain transformers and peft do it: the same loss and the same parameters after the same steps."""

from pathlib import Path
from typing import Any

import bases
import pytest
import tiny_models
import torch
from datasets import Dataset
from peft import PeftModel
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

from hellora.client.batches import training_batches
from hellora.client.train import train_client
from hellora.model.peft_files import save_peft
from hellora.model.settings import ModelSettings
from hellora.tasks.common.texts import TextTask
from hellora.tasks.multi_label import MultiLabel
from hellora.tasks.regression import Regression

STEPS, LR = 3, 0.05
NUMBERS, LABELS = [[0.5], [2.0], [-1.5]], [[1, 0], [0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("task", "targets", "problem"),
    [
        pytest.param(Regression(head_type="own"), NUMBERS, "regression", id="regression"),
        pytest.param(MultiLabel(head_type="own"), LABELS, "multi_label_classification", id="multi_label"),
    ],
)
def test_the_first_steps_are_those_of_a_plain_loop(
    task: TextTask, targets: list[Any], problem: str, tmp_path: Path
) -> None:
    """HF's own losses, on standardised numbers; the batches are hellora's."""
    folder = tiny_models.save_bert(tmp_path / "bert", own_head=True, **bases.NO_DROPOUT)
    rows = Dataset.from_dict({"text": bases.texts(12)["text"][:], "targets": targets * 4})
    names = ("one", "two")[: len(targets[0])]
    task = task.fitted([task.number_sums(rows)], names)  # type: ignore[assignment]
    settings = ModelSettings(name=str(folder), rank=3, alpha=6.0)
    base = task.load(settings, names, seed=0)
    begun = bases.task_of(base, range(4), steps=STEPS, lr=LR, optimizer="sgd", weight_decay=0.0)
    update = train_client(begun, base, task, rows)

    save_peft(begun.adapter, tmp_path / "peft", base, settings, task.kind())
    plain = AutoModelForSequenceClassification.from_pretrained(
        str(folder), num_labels=len(names), ignore_mismatched_sizes=True, problem_type=problem
    )
    model = PeftModel.from_pretrained(plain, str(tmp_path / "peft"), is_trainable=True).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR)
    encoded, losses = task.encode(base, rows), []
    for indices in training_batches(encoded, begun.train, begun.seed):
        batch = task.collate(base, [encoded.examples[i] for i in indices])
        loss = model(**{**batch, "labels": batch["labels"].float()}).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert update.metrics["loss"] == pytest.approx(sum(losses) / STEPS, abs=1e-5)
    theirs = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, pair in update.adapter.pairs.items():
        for letter, mine in (("A", pair.A), ("B", pair.B)):
            (found,) = [p for key, p in theirs.items() if key.endswith(f"{name}.lora_{letter}.default.weight")]
            assert_close(mine, found.detach(), atol=1e-5, rtol=1e-5)
    for name, mine in update.adapter.head.items():
        (found,) = [
            p for key, p in theirs.items() if key.endswith(f"modules_to_save.default.{name.rpartition('.')[2]}")
        ]
        assert_close(mine, found.detach(), atol=1e-5, rtol=1e-5)
