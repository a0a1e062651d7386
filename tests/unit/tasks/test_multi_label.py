"""Several labels of a text: the loss, the metrics against scikit-learn's, what is said to people, what is distilled."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.metrics import average_precision_score, classification_report, f1_score
from torch.testing import assert_close

from hellora.client.distillation import divergence, soften
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.tasks.multi_label import MultiLabel

TEXTS = ["the old boat", "we saw the new moon near a field", "rain", "a worm"]
HAS = [[1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]]
ROWS = Dataset.from_dict({"text": TEXTS, "targets": HAS})
NAMES = ("sea", "sky", "soil")
TASK = MultiLabel()


@pytest.fixture(scope="module")
def base(tiny_bert: Path) -> BaseModel:
    return TASK.load(ModelSettings(name=str(tiny_bert), classes=4), NAMES, seed=0)  # one more than there are


def test_each_label_is_a_question_of_its_own(base: BaseModel) -> None:
    batch = TASK.collate(base, TASK.encode(base, ROWS).examples)
    with torch.no_grad():
        logits = TASK.logits(base, batch)
    found = TASK.score(logits, batch)
    sign = 2 * torch.tensor([[*has, 0] for has in HAS]) - 1  # nothing has the fourth
    assert_close(found.loss_sums, torch.nn.functional.softplus(-sign * logits).mean(1))  # −log σ(±z)
    assert TASK.references(batch) == HAS
    unlabelled = {**batch, "labels": torch.full((4, 3), -100)}
    assert not TASK.score(logits, unlabelled).loss_sums.any()


def test_metrics_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    right, scores = rng.integers(0, 2, (50, 3)), rng.random((50, 3))
    found = MultiLabel(threshold=0.3).metrics(0.5, scores.tolist(), right.tolist())
    said = scores >= 0.3
    assert found == pytest.approx(
        {
            "micro_f1": f1_score(right, said, average="micro"),
            "macro_f1": f1_score(right, said, average="macro"),
            "mean_average_precision": average_precision_score(right, scores, average="macro"),
            "loss": 0.5,
        }
    )
    per_class = MultiLabel(threshold=0.3).per_class(np.pad(scores, ((0, 0), (0, 1))).tolist(), right.tolist())
    theirs = classification_report(right, said, target_names=NAMES, output_dict=True, zero_division=0)
    assert per_class.confusion(NAMES) == {}, "a text may have several labels"
    for name, own in per_class.scores(NAMES).items():
        assert list(own.values()) == pytest.approx(list(theirs[name].values()), abs=1e-4)
    assert list(per_class.counts) == [0, 1, 2], "the head has room for one more"


def test_labels_that_nothing_has_and_nobody_says_do_not_count() -> None:
    """By hand: of two labels one is there and found; of one label alone it is no matter of classes."""
    found = TASK.metrics(0.0, [[0.9, 0.1, 0.2], [0.4, 0.2, 0.1]], [[1, 0], [0, 0]])
    assert (found["micro_f1"], found["macro_f1"], found["mean_average_precision"]) == (1.0, 1.0, 1.0)
    alone = TASK.metrics(0.0, [[0.9], [0.8], [0.1]], [[1], [0], [0]])
    assert (alone["micro_f1"], alone["mean_average_precision"]) == (pytest.approx(2 / 3), 1.0)
    nothing = TASK.metrics(0.0, [[0.1]], [[0]])
    assert set(nothing.values()) == {0.0}


def test_what_is_said_has_the_labels_and_all_probabilities() -> None:
    (said,) = TASK.predictions(torch.tensor([[0.0, -1.0, 5.0]]), [], NAMES)
    assert said["labels"] == ["sea", "soil"]  # ½ is enough
    assert said["probabilities"]["sky"] == pytest.approx(1 / (1 + np.e))


def test_a_distilled_label_is_a_sigmoid() -> None:
    """T² KL(p ‖ q) of two coins, at T = 2."""
    z, w = torch.tensor([[0.4, -2.0]]), torch.tensor([[1.0, 3.0]])
    found = divergence(soften(TASK.distributions(z), 2.0, None), TASK.distributions(w), 2.0)
    p, q = (z / 2).sigmoid(), (w / 2).sigmoid()
    assert_close(found, 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()), atol=1e-6, rtol=1e-5)


def test_a_threshold_is_a_probability() -> None:
    with pytest.raises(ValueError, match="threshold must be a probability between 0 and 1, not 1"):
        MultiLabel(threshold=1)
