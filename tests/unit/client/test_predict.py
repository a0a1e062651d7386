"""`client.inference`: logits in the order of the rows, whatever the batches; and reading back what was exported."""

from pathlib import Path
from typing import Any

import bases
import pytest
import torch
from datasets import Dataset
from factories import bits

from hellora.core.errors import InputError
from hellora.model.peft_files import load_peft, save_peft
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.tasks import Task
from hellora.tasks.sequence_classification import SequenceClassification

TASK = SequenceClassification()
TEXTS = [
    "the old boat and the new moon near the field",
    "a boat",
    "we saw the wave with a fish",
    "moon",
    "the tide is new",
]


@pytest.fixture(scope="module")
def base(tiny_bert: Path) -> BaseModel:
    return bases.load(tiny_bert)


def rows_of(texts: list[str]) -> Dataset:
    return Dataset.from_dict({"text": texts, "label": [0] * len(texts)})


def test_predictions_come_in_the_order_of_the_rows(base: BaseModel) -> None:
    """Batches go by length: 10, 2, 7, 1 and 4 words."""
    adapter = bases.acting_adapter(base)
    alone = torch.cat([bases.logits(adapter, base, TASK, rows_of([text]), 1) for text in TEXTS])
    assert len({tuple(row) for row in alone.tolist()}) == len(TEXTS)
    for size in (1, 2, 8):
        together = bases.logits(adapter, base, TASK, rows_of(TEXTS), size)
        assert (together.shape, together.dtype) == ((5, len(bases.LABELS)), torch.float32)
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head_type", ["mean_pooling", "own"])
def test_what_was_written_for_peft_is_read_back_bit_by_bit(tiny_bert: Path, tmp_path: Path, head_type: Any) -> None:
    task = SequenceClassification(head_type=head_type)
    base = bases.load(tiny_bert, task)
    adapter = bases.acting_adapter(base)
    save_peft(adapter, tmp_path, base, ModelSettings(name=str(tiny_bert)), task.kind())
    read = load_peft(tmp_path, base)
    assert bits(read.tensors()) == bits(adapter.tensors())
    assert {pair.scale for pair in read.pairs.values()} == {base.spec.scale}
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"is damaged, or of another base model \(.*\): export it again$"):
        load_peft(tmp_path, base)


def test_a_task_that_cannot_answer_says_so(base: BaseModel) -> None:
    with pytest.raises(InputError, match=r"task SequenceClassification has no answer\(\), which predictions need"):
        Task.answer(TASK, base, ["what?"])
