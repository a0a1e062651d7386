"""The loss that a client reports: by hand, and what training itself says that it was."""

from pathlib import Path

import bases
import numpy as np
import pytest
import torch
from factories import local_of, random_adapter, task_for, tiny_spec

from hellora.client.train import train_client
from hellora.methods.demands import LOSS_REPORTED
from hellora.methods.local_training.local_loss import LocalLoss
from hellora.methods.local_training.prelort import Prelort

SPEC = tiny_spec()


def test_it_is_the_mean_over_examples_by_hand() -> None:
    local = local_of(task_for(0, random_adapter(SPEC, 0), np.ones((3, 4), dtype=bool)), SPEC)
    local.loss_sum, local.weight_sum = 3.0, 4.0
    report, kept = LocalLoss().end(local, None)
    assert (report["loss"].item(), report["loss"].dtype, kept) == (0.75, torch.float64, {})
    assert LOSS_REPORTED in LocalLoss().demands.promises


@pytest.mark.parametrize("others", [(), (Prelort(),)], ids=["alone", "with other losses"])
def test_it_is_what_training_says_of_unequal_steps(others: tuple[Prelort, ...], tiny_bert: Path) -> None:
    """Ten examples in batches of four: the last step has two of them."""
    base, rows = bases.load(tiny_bert), bases.texts(10)
    task = bases.task_of(base, [1, 3])
    update = train_client(task, base, bases.MEAN_POOLING, rows, (LocalLoss(), *others))
    assert update.report["local_loss/loss"].item() == update.metrics["loss"] > 0
