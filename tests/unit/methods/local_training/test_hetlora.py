"""HetLoRA: the tail and its penalty, by hand, and the rank that a client reports."""

from dataclasses import replace
from typing import Any

import bases
import numpy as np
import pytest
import tiny_models
import torch
from factories import local_of, tiny_spec
from torch.testing import assert_close

from hellora.client.train import train_client
from hellora.core.algebra import new_adapter
from hellora.core.exchange import ClientTask, TensorSpec, TrainSettings
from hellora.core.types import Adapter, AdapterSpec, LoraPair, ModuleSpec
from hellora.methods.demands import RANKS_REPORTED
from hellora.methods.local import Shapes
from hellora.methods.local_training.hetlora import Hetlora
from hellora.model.resident import BaseModel


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """Four layers without dropout."""
    return bases.load(tiny_models.save_bert(tmp_path_factory.mktemp("bert"), **bases.NO_DROPOUT))


@pytest.mark.parametrize(
    ("rank", "share", "least", "kept"),
    [
        (50, 0.99, 5, 49),
        (8, 0.99, 1, 7),
        (8, 0.5, 1, 4),
        (8, 0.5, 5, 5),
        (5, 0.99, 5, 5),
        (3, 0.9, 5, 3),
        (1, 0.0, 1, 1),
    ],
)
def test_what_is_left_of_a_rank_without_its_tail(rank: int, share: float, least: int, kept: int) -> None:
    assert Hetlora(tail_share=share, min_rank=least).kept_rank(rank) == kept


FIRST = LoraPair(torch.tensor([[9.0, 9], [0, 2], [0, 0]]), torch.tensor([[9.0, 3, 0], [9, 0, 4]]), 2.0)
SECOND = LoraPair(torch.ones(1, 2), torch.ones(2, 1), 2.0)


@pytest.mark.parametrize(("pairs", "tail"), [("a", 10.0), ("abc", 20.0), ("c", 0.0)])
def test_the_tail_by_hand(pairs: str, tail: float) -> None:
    """Rank 3 keeps 1: tails B (2, 2) of norm 5 and A (2, 2) of norm 2. Rank 1 has no tail."""
    of = {"a": FIRST, "b": FIRST, "c": SECOND}
    layers = tuple(pairs)
    spec = AdapterSpec(tuple(ModuleSpec(n, i, 2, 2) for i, n in enumerate(layers)), layers, 3, 2.0)
    row = np.array([np.arange(3) < of[name].rank for name in layers])
    task = ClientTask(0, 0, 0, Adapter({n: of[n] for n in layers}), row, TrainSettings(), cut=True)
    rule = Hetlora(tail_penalty=0.3, tail_share=0.5)
    local = local_of(task, spec)
    assert rule.tail(local).item() == tail
    penalty = rule.penalty(local)
    assert penalty is not None
    assert penalty.item() == pytest.approx(0.3 * tail)


def gradients(base: BaseModel, task: ClientTask, rows: Any) -> dict[str, torch.Tensor]:
    """The gradient of the mean loss over all rows, by flat tensor name."""
    kind = bases.MEAN_POOLING
    with base.adapted(task.adapter, task.trained, train_head=True) as adapted:
        batch = kind.collate(base, kind.encode(base, rows).examples)
        kind.outputs(base, batch).loss_sums.mean().backward()
        flat: dict[str, Any] = {}
        for name, module in adapted.lora.items():
            flat[f"{name}.lora_A"], flat[f"{name}.lora_B"] = module.A.grad, module.B.grad
    return flat


def test_the_penalty_adds_its_gradient_to_one_step(base: BaseModel) -> None:
    """Of λ ‖B_t‖ ‖A_t‖ that is λ ‖B_t‖ A_t / ‖A_t‖ for A_t, and likewise for B_t, module by module."""
    rows = bases.texts(4)
    task = bases.task_of(base, [1, 2], steps=1, optimizer="sgd", lr=0.1, weight_decay=0.0)
    flat = gradients(base, task, rows)
    rule = Hetlora(tail_penalty=0.3, tail_share=0.5)
    plain = train_client(task, base, bases.MEAN_POOLING, rows)
    update = train_client(task, base, bases.MEAN_POOLING, rows, [rule])
    for name, got in update.adapter.pairs.items():
        A, B = task.adapter.pairs[name].A, task.adapter.pairs[name].B
        expected_A, expected_B = A - 0.1 * flat[f"{name}.lora_A"], B - 0.1 * flat[f"{name}.lora_B"]
        expected_A[1:] -= 0.1 * 0.3 * B[:, 1:].norm() * A[1:] / A[1:].norm()
        expected_B[:, 1:] -= 0.1 * 0.3 * A[1:].norm() * B[:, 1:] / B[:, 1:].norm()
        assert_close(got.A, expected_A, atol=1e-6, rtol=1e-5)
        assert_close(got.B, expected_B, atol=1e-6, rtol=1e-5)
        assert_close(got.A[:1], plain.adapter.pairs[name].A[:1], atol=1e-6, rtol=1e-5)
    assert update.metrics["loss"] == plain.metrics["loss"], "the penalty is not in the reported loss"


def test_a_client_whose_tail_has_shrunk_reports_a_smaller_rank(base: BaseModel) -> None:
    row = bases.mixed_row(base)  # 0, 3, 1 and 2 of 3 components

    def reported(adapter: Adapter, **settings: Any) -> int | None:
        task = bases.task_of(base, row, adapter, steps=6, lr=0.01)
        rule = Hetlora(**{"tail_share": 0.9, "tail_penalty": 0.0, **settings})
        told = train_client(task, base, bases.MEAN_POOLING, bases.texts(8), [rule]).report
        return int(told["hetlora/rank"]) if told else None

    acting = bases.acting_adapter(base)
    assert reported(acting, tail_penalty=30.0) == 2
    assert reported(acting, tail_penalty=30.0, tail_share=0.0) == 1
    assert reported(acting, tail_penalty=30.0, min_rank=3) is None  # nothing may go
    assert reported(acting) is None  # nobody asked
    new = new_adapter(base.spec, base.initial_head(), 0)
    assert reported(new, tail_penalty=1e-6) is None  # from B = 0 a tail can only grow


def test_what_is_declared_and_promised() -> None:
    shapes = Shapes(tiny_spec(), np.array([[True, False, True, False], [True] * 3 + [False], [False] * 4]))
    rank = TensorSpec((), torch.int64, low=1, high=3, optional=True)
    assert Hetlora().declares(shapes).report == {"rank": rank}
    assert Hetlora().demands.promises == {RANKS_REPORTED}
    assert not replace(Hetlora(), tail_penalty=0.0).demands.promises


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tail_penalty": -1}, "tail_penalty must not be negative, but it is -1"),
        ({"tail_penalty": float("nan")}, "tail_penalty must not be negative"),
        ({"tail_share": 1.0}, r"tail_share must be in \[0, 1\), not 1.0"),
        ({"min_rank": 0}, "min_rank must be greater than 0, not 0"),
    ],
)
def test_settings_are_checked(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hetlora(**wrong)
