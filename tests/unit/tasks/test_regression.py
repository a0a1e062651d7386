"""Numbers of texts: standardised to learn, in their unit to people; metrics against scipy and by hand."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from scipy.stats import pearsonr, spearmanr
from torch.testing import assert_close

from hellora.core.errors import InputError
from hellora.core.number_sums import NumberSums
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.tasks.regression import Regression

TEXTS = ["the old boat", "we saw the new moon near a field", "rain"]
NUMBERS = [[1.0, 300.0], [2.0, 100.0], [6.0, 200.0]]
ROWS = Dataset.from_dict({"text": TEXTS, "targets": NUMBERS})
NAMES = ("valence", "arousal")
TASK = Regression().fitted([Regression().number_sums(ROWS)], NAMES)


@pytest.fixture(scope="module")
def base(tiny_bert: Path) -> BaseModel:
    return TASK.load(ModelSettings(name=str(tiny_bert)), NAMES, seed=0)


def test_statistics_are_found_once() -> None:
    assert (TASK.mean, TASK.deviation) == ((3.0, 200.0), (2.16025, 81.6497))  # √(14/3), √(20000/3), to 6 digits
    assert TASK.numbers == NAMES
    assert TASK.number_sums(ROWS) is None  # nobody is asked again
    assert TASK.fitted([None], NAMES) == TASK
    parts = [Regression().number_sums(ROWS.select(rows)) for rows in ([2], [0, 1])]
    assert Regression().fitted(parts, NAMES) == TASK


def test_the_loss_is_of_standardised_numbers(base: BaseModel) -> None:
    batch = TASK.collate(base, TASK.encode(base, ROWS).examples)
    with torch.no_grad():
        logits = TASK.logits(base, batch)
        found = TASK.score(logits, batch)
    standard = (torch.tensor(NUMBERS) - torch.tensor(TASK.mean)) / torch.tensor(TASK.deviation)
    assert_close(found.loss_sums, ((logits - standard) ** 2).mean(1), atol=1e-5, rtol=1e-5)
    assert found.predictions is not None
    assert_close(found.predictions, logits * torch.tensor(TASK.deviation) + torch.tensor(TASK.mean))
    assert_close(torch.tensor(TASK.references(batch)), torch.tensor(NUMBERS), atol=1e-4, rtol=1e-6)
    (first, *_) = TASK.predictions(logits, [], NAMES)
    assert_close(torch.tensor([first["valence"], first["arousal"]]), found.predictions[0])


def test_what_has_no_number_teaches_nothing(base: BaseModel) -> None:
    rows = Dataset.from_dict({"text": TEXTS, "targets": [[math.nan, math.nan], [2.0, math.nan], [6.0, 200.0]]})
    batch = TASK.collate(base, TASK.encode(base, rows).examples)
    logits = TASK.logits(base, batch).detach().requires_grad_()
    losses = TASK.score(logits, batch).loss_sums
    losses.sum().backward()
    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [[False, False], [True, False], [True, True]]


def test_metrics_are_those_of_scipy() -> None:
    said, right = [[1.0, 5.0], [2.5, 5.0], [9.0, 5.0], [3.0, 5.0]], [[0.0, 1.0], [3.0, 2.0], [7.0, 3.0], [2.0, 5.0]]
    found = TASK.metrics(0.25, said, right)
    one, other = ([row[0] for row in rows] for rows in (said, right))
    assert found["pearson_valence"] == pytest.approx(pearsonr(one, other).statistic)
    assert found["spearman_valence"] == pytest.approx(spearmanr(one, other).statistic)
    assert found["rmse_valence"] == pytest.approx(math.sqrt((1 + 0.25 + 4 + 1) / 4))
    assert (found["pearson_arousal"], found["spearman_arousal"]) == (0.0, 0.0)  # it always says 5
    assert found["pearson"] == pytest.approx(found["pearson_valence"] / 2)
    assert found["loss"] == 0.25
    alone = Regression().metrics(0.25, [[1.0]], [[3.0]])
    assert alone == {"pearson": 0.0, "spearman": 0.0, "rmse": 2.0, "loss": 0.25}


@pytest.mark.parametrize(
    ("settings", "told", "words"),
    [
        ({"mean": (1.0,), "deviation": (1.0,)}, [None], "task.mean has 1 numbers, and the data 2"),
        ({}, [NumberSums(2, (2.0, 4.0), (2.0, 8.5)), None], "not everybody's data tell sums of the same 2 numbers"),
        ({}, [NumberSums(2, (2.0,), (3.0,))], "not everybody's data tell sums of the same 2 numbers"),
        ({}, [NumberSums(2, (0.2, 4.0), (0.02, 8.5))], "all training examples have the same 'valence'"),
    ],
)
def test_statistics_that_cannot_be_are_refused(settings: dict[str, Any], told: list[Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        Regression(**settings).fitted(told, NAMES)


@pytest.mark.parametrize("settings", [{"mean": (1.0,)}, {"mean": (1.0,), "deviation": (0.0,)}, {"max_length": 2}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"deviation|max_length"):
        Regression(**settings)


def test_a_plan_needs_no_data(base: BaseModel) -> None:
    """A blank batch has a loss, whatever numbers there will be."""
    outputs = TASK.outputs(base, TASK.blank_batch(base, 3, 5))
    assert outputs.loss_sums.shape == (3,)
