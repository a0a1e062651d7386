"""The cause of a loss that is nan: what was not finite first."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import bases
import pytest
import torch

from hellora.client import not_finite
from hellora.client.train import TrainingError, train_client
from hellora.model.resident import BaseModel
from hellora.tasks import Batch
from hellora.tasks.sequence_classification import SequenceClassification

KIND = bases.MEAN_POOLING


@pytest.fixture
def base(tiny_bert: Path) -> BaseModel:
    return bases.load(tiny_bert)


def said(base: BaseModel, kind: Any = KIND, **changes: Any) -> str:
    task = bases.task_of(base, [1, 3], **changes.pop("settings", {}))
    with pytest.raises(TrainingError) as caught:
        train_client(replace(task, **changes), base, kind, bases.texts(12))
    return str(caught.value)


def test_the_servers_adapter(base: BaseModel) -> None:
    adapter = bases.acting_adapter(base)
    name = base.spec.modules[3].name
    pair = adapter.pairs[name]
    broken = replace(adapter, pairs={**adapter.pairs, name: replace(pair, B=pair.B * torch.inf)})
    assert f"step 1: the adapter that came from the server is not finite ({name})" in said(base, adapter=broken)
    assert not_finite.in_model(base, broken).startswith(f"the adapter is not finite ({name}), so its training diverged")
    assert not_finite.in_model(base, adapter) == ""


def test_the_base(base: BaseModel) -> None:
    weight = base.net.get_parameter("encoder.layer.2.output.dense.weight")
    weight[0, 0] = torch.nan
    expected = "the base's weight encoder.layer.2.output.dense.weight is not finite: load a whole copy of the model"
    assert said(base).endswith(f"step 1: {expected}")
    assert not_finite.in_model(base, bases.acting_adapter(base)) == expected


def test_steps_that_were_too_large(base: BaseModel) -> None:
    found = said(base, settings={"lr": 1e38, "steps": 9, "optimizer": "sgd"})
    assert "the loss became nan at step 2: the steps before it made " in found
    assert found.endswith(": lower train.lr")


class Odd(SequenceClassification):
    """One example's loss is nan though all that goes in is finite."""

    def outputs(self, base: BaseModel, batch: Batch) -> Any:
        outputs = super().outputs(base, batch)
        bad = (batch["input_ids"] == bases.id_of(base, "rain")).any(1)
        return replace(outputs, loss_sums=outputs.loss_sums.masked_fill(bad, torch.nan))


def test_an_example(base: BaseModel) -> None:
    rows = [i for i, text in enumerate(bases.texts(12)["text"]) if "rain" in text]
    assert rows, "some text must have the word"
    found = said(base, Odd(), settings={"batch_size": 12})
    assert found.startswith(
        "the loss became nan at step 1: weights, adapter and inputs are finite, and what the model "
    )
    assert set(map(int, found.partition(" of row")[2].lstrip("s ").partition(" in ")[0].split(", "))) == set(rows)


def test_inputs(base: BaseModel) -> None:
    batch = {"pixel_values": torch.tensor([[0.0], [torch.inf], [1.0]])}
    adapter = bases.acting_adapter(base)
    with base.adapted(adapter) as adapted:
        found = not_finite.in_step(base, adapted, adapter, batch, torch.zeros(3), [4, 7, 9])
    assert found == "pixel_values of row 7 is not finite: mend the data"
