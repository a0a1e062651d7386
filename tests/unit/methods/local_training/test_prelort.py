"""PreLort against models that are truncated by hand, and what its passes cost."""

from dataclasses import replace
from typing import Any

import bases
import numpy as np
import pytest
import tiny_models
import torch
from factories import bits, method_of
from torch.testing import assert_close

from hellora.client.train import train_client
from hellora.core.exchange import ClientTask, ClientUpdate, Policy
from hellora.core.types import LoraPair
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.everything import Everything
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.local_training.prelort import Prelort
from hellora.methods.strategies import rank_shares
from hellora.model.resident import BaseModel

KIND = bases.MEAN_POOLING
ROWS = bases.texts(8)
ONE_STEP: dict[str, Any] = {"steps": 1, "batch_size": 8, "optimizer": "sgd", "lr": 10.0, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """Rank 4, without dropout."""
    folder = tiny_models.save_bert(tmp_path_factory.mktemp("bert"), **bases.NO_DROPOUT)
    return bases.load(folder, rank=4, alpha=8.0)


def truncated_by_hand(task: ClientTask, rank: int) -> ClientTask:
    """The task of a client that has, and trains, the first components alone; it is one of a lower rank."""
    pairs = {
        name: LoraPair(pair.A[:rank].contiguous(), pair.B[:, :rank].contiguous(), pair.scale)
        for name, pair in task.adapter.pairs.items()
    }
    trained = task.trained & (np.arange(task.trained.shape[1]) < rank)
    return replace(task, adapter=replace(task.adapter, pairs=pairs), trained=trained, cut=True)


def gradients(update: ClientUpdate, task: ClientTask) -> dict[str, torch.Tensor]:
    """What one step of SGD says that the gradient was, with 0 for components that were not there."""
    start, found = task.adapter.tensors(), {}
    for name, now in update.adapter.tensors().items():
        whole = torch.zeros_like(start[name])
        part = tuple(slice(size) for size in now.shape)
        whole[part] = (start[name][part] - now) / task.train.lr
        found[name] = whole
    return found


def test_the_gradient_is_the_mean_over_truncated_models(base: BaseModel) -> None:
    """Of rank 4: all, 2 and 1. Each truncated model is a client of its own that has no more."""
    task = bases.task_of(base, [0, 1, 2, 3], **ONE_STEP)
    update = train_client(task, base, KIND, ROWS, [Prelort((0.25, 0.5))])
    each = [(rank, train_client(truncated_by_hand(task, rank), base, KIND, ROWS)) for rank in (4, 2, 1)]
    alone = [gradients(one, task) for _, one in each]
    for name, gradient in gradients(update, task).items():
        expected = torch.stack([one[name] for one in alone]).mean(0)
        assert_close(gradient, expected, atol=1e-6, rtol=1e-3)
        assert (gradient - alone[0][name]).abs().max() > 1e-5, name
    losses = [one.metrics["loss"] for _, one in each]
    assert update.metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert len(set(losses)) == 3


def test_where_a_client_trains_one_component_every_truncation_is_the_whole(base: BaseModel) -> None:
    row = bases.row_of(base, [2, 3])
    row[:, 1:] = False
    task = bases.task_of(base, row, **ONE_STEP)
    plain, update = (train_client(task, base, KIND, ROWS, rules) for rules in ((), (Prelort(),)))
    for name, now in update.adapter.tensors().items():
        assert_close(now, plain.adapter.tensors()[name], atol=1e-5, rtol=1e-4)


def test_it_goes_with_every_way_to_save_memory(base: BaseModel) -> None:
    """Blocks that run again in backward are truncated there, too; micro-batches and a prefix cache change nothing."""
    task = bases.task_of(base, [2, 3], epochs=2, same_batches=True)
    usual = train_client(task, base, KIND, ROWS, [Prelort()])
    for policy in (Policy(recompute="all"), Policy(prefix_cache="memory")):
        update = train_client(replace(task, policy=policy), base, KIND, ROWS, [Prelort()])
        assert bits(update.adapter.tensors()) == bits(usual.adapter.tensors()), policy
    update = train_client(replace(task, policy=Policy(micro_batch=2)), base, KIND, ROWS, [Prelort()])
    for name, now in update.adapter.tensors().items():
        assert_close(now, usual.adapter.tensors()[name], atol=1e-5, rtol=1e-3)


def test_the_model_comes_back_whole(base: BaseModel) -> None:
    task = bases.task_of(base, [2, 3])
    before = train_client(task, base, KIND, ROWS)
    train_client(task, base, KIND, ROWS, [Prelort()])
    assert bits(train_client(task, base, KIND, ROWS).adapter.tensors()) == bits(before.adapter.tensors())


def test_shares_of_several_rules_are_taken_once_the_whole_first() -> None:
    assert rank_shares(()) == (1.0,)
    assert rank_shares((Prelort((0.25, 0.5)), Prelort((0.5, 0.75)))) == (1.0, 0.25, 0.5, 0.75)
    method = method_of(Everything(), Whole(), ParticipantMean(), local_training=(Prelort(),))
    assert len(rank_shares(method.local_training)) == 3


@pytest.mark.parametrize("wrong", [(0.5, 0.25), (0.0,), (1.0,), (0.5, 0.5), (float("nan"),)])
def test_truncations_are_checked(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="truncations must be shares of the rank between 0 and 1, ascending"):
        Prelort(wrong)
