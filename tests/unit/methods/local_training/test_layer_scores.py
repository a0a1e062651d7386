"""Scores of the layers that a client trains, against gradients by hand."""

from typing import Any

import bases
import numpy as np
import numpy.typing as npt
import pytest
import tiny_models
import torch

from hellora.client.batches import training_batches
from hellora.client.train import train_client
from hellora.core.exchange import ClientTask
from hellora.methods.demands import LAYER_SCORES_REPORTED
from hellora.methods.local_training.layer_scores import LayerScores
from hellora.model.resident import BaseModel

KIND = bases.MEAN_POOLING


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """Four layers without dropout."""
    return bases.load(tiny_models.save_bert(tmp_path_factory.mktemp("bert"), **bases.NO_DROPOUT))


def squares(base: BaseModel, task: ClientTask, rows: Any) -> npt.NDArray[np.float64]:
    """Each layer's squared norm of the gradient of the mean loss over all rows."""
    found = np.full(base.spec.num_layers, np.nan)
    found[task.trained.any(axis=1)] = 0
    with base.adapted(task.adapter, task.trained, train_head=True) as adapted:
        batch = KIND.collate(base, KIND.encode(base, rows).examples)
        KIND.outputs(base, batch).loss_sums.mean().backward()
        for name, module in adapted.lora.items():
            for factor in (module.A, module.B):
                assert factor.grad is not None
                found[base.spec.layer_of[name]] += float((factor.grad**2).sum())
    return found


def scored(task: ClientTask, base: BaseModel, rows: Any) -> npt.NDArray[np.float64]:
    told = train_client(task, base, KIND, rows, [LayerScores()]).report
    assert told.keys() == {"layer_scores/scores"}
    assert told["layer_scores/scores"].dtype == torch.float64
    return told["layer_scores/scores"].numpy()


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_one_step_by_hand_clipped_or_not(clip_norm: float | None, base: BaseModel) -> None:
    rows = bases.texts(4)
    task = bases.task_of(base, [1, 2], steps=1, optimizer="sgd", lr=0.1, weight_decay=0.0, clip_norm=clip_norm)
    scores = scored(task, base, rows)
    np.testing.assert_allclose(scores, squares(base, task, rows), rtol=1e-4)
    assert np.isnan(scores).tolist() == [True, False, False, True]
    assert not train_client(task, base, KIND, rows).report


def test_scores_are_the_mean_over_steps(base: BaseModel) -> None:
    rows = bases.texts(8)
    task = bases.task_of(base, [0, 3], lr=1e-12)
    batches = list(training_batches(KIND.encode(base, rows), task.train, task.seed))
    assert len(batches) == 2
    expected = np.mean([squares(base, task, rows.select(batch)) for batch in batches], axis=0)
    np.testing.assert_allclose(scored(task, base, rows), expected, rtol=1e-3)


def test_what_it_promises() -> None:
    assert LayerScores().demands.promises == {LAYER_SCORES_REPORTED}
    assert not LayerScores().demands.needs
