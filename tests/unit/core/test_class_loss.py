"""Losses by class: torch's own, in the mean of a batch and in a client's step."""

from pathlib import Path

import bases
import pytest
import tiny_models
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import CrossEntropyLoss
from torch.testing import assert_close

from hellora.client.evaluation import evaluate
from hellora.client.train import train_client
from hellora.core.class_loss import ClassLoss, Weights
from hellora.core.errors import InputError
from hellora.tasks import classification_outputs
from hellora.tasks.image_classification import ImageClassification
from hellora.tasks.sequence_classification import SequenceClassification

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 0, 0, 2, 2, 3])  # the client has no example of class 1


def balanced(labels: Tensor) -> Tensor:
    """What scikit-learn says of the classes that are there, and 1 of class 1."""
    found = compute_class_weight("balanced", classes=labels.unique().numpy(), y=labels.numpy())
    weights = torch.ones(4)
    weights[labels.unique()] = torch.tensor(found, dtype=torch.float32)
    return weights


@pytest.mark.parametrize(
    ("weights", "theirs"),
    [((), None), ((0.1, 2.0, 0.5, 3.0), torch.tensor([0.1, 2.0, 0.5, 3.0])), ("balanced", balanced(LABELS))],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_mean_of_a_batch_is_torchs(weights: Weights, theirs: Tensor | None, smoothing: float) -> None:
    found = ClassLoss(weights, smoothing).of(classification_outputs(LOGITS, LABELS), LABELS)
    wanted = CrossEntropyLoss(theirs, label_smoothing=smoothing)(LOGITS, LABELS)
    assert_close(found.loss_sums.sum() / found.weights.sum(), wanted, atol=1e-6, rtol=1e-6)


def test_equal_weights_change_nothing_and_an_example_without_a_class_has_no_loss() -> None:
    labels = torch.tensor([0, -100, 3, 1, 1, 2])
    plain = classification_outputs(LOGITS, labels)
    found = ClassLoss((1.0,) * 4).of(plain, labels)
    assert torch.equal(found.loss_sums, plain.loss_sums)
    assert torch.equal(found.weights, plain.weights)
    assert ClassLoss((5.0,) * 4, 0.1).of(plain, labels).loss_sums[1] == 0


def test_a_head_with_more_room_gives_the_rest_the_weight_1() -> None:
    found = ClassLoss((0.5, 2.0)).of_classes(None, 4)
    assert found is not None
    assert found.tolist() == [0.5, 2.0, 1.0, 1.0]


def test_a_clients_step_is_that_of_a_plain_loop_and_the_evaluation_keeps_the_plain_loss(tmp_path: Path) -> None:
    """All examples in one batch; small weights, so that their sum is below 1."""
    weights = (0.02, 0.1, 0.004)
    kind = SequenceClassification(class_weights=weights, label_smoothing=0.1)
    base, rows = bases.load(tiny_models.save_bert(tmp_path / "bert", **bases.NO_DROPOUT), kind), bases.texts(9)
    task = bases.task_of(base, [1, 3], batch_size=9, lr=0.5, optimizer="sgd", weight_decay=0.0)
    update = train_client(task, base, kind, rows)
    batch = kind.collate(base, kind.encode(base, rows).examples)
    loss_of = CrossEntropyLoss(torch.tensor(weights), label_smoothing=0.1)
    with base.adapted(task.adapter, task.trained) as adapted:
        loss = loss_of(kind.logits(base, batch), batch["labels"])
        torch.autograd.backward(loss)
        for name, module in adapted.lora.items():
            assert module.B.grad is not None
            assert_close(update.adapter.pairs[name].B, module.B.data - 0.5 * module.B.grad, atol=1e-6, rtol=1e-6)
    assert update.metrics["loss"] == pytest.approx(float(loss.detach()), abs=1e-6)
    plain = SequenceClassification()
    found, wanted = (evaluate(task.adapter, base, each, rows, 4) for each in (kind, plain))
    assert found.metrics == wanted.metrics


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"class_weights": (1.0, 0.0)}, "class_weights must be above 0, not 0.0"),
        ({"label_smoothing": 1.0}, "label_smoothing must be from 0 to below 1, not 1.0"),
    ],
)
def test_settings_that_make_no_loss_are_refused(settings: dict[str, float], words: str) -> None:
    for kind in (SequenceClassification, ImageClassification):
        with pytest.raises(ValueError, match=words):
            kind(**settings)


def test_there_is_a_weight_for_every_class() -> None:
    with pytest.raises(InputError, match=r"has 2 numbers for 3 classes \(sea, sky, soil\): give one each"):
        ClassLoss((1.0, 2.0)).check(bases.LABELS)
    ClassLoss((1.0, 2.0)).check(())  # a plan does not know them
    ClassLoss("balanced").check(bases.LABELS)
