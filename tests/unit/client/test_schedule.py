"""The learning rate of each step, against transformers' own schedules, and of whole rounds by hand."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import bases
import pytest
import torch
from torch import Tensor
from transformers import get_scheduler

import hellora.client.train
from hellora.client.schedule import shares
from hellora.client.train import train_client
from hellora.core.exchange import ClientTask, TrainSettings
from hellora.core.types import Adapter
from hellora.methods.local_training.scaffold import Scaffold
from hellora.model.resident import BaseModel
from hellora.tasks.sequence_classification import SequenceClassification

KIND = SequenceClassification()
NAMES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


@pytest.fixture(scope="module")
def base(tiny_bert: Path) -> BaseModel:
    return bases.load(tiny_bert)


def theirs(settings: TrainSettings, total: int) -> list[float]:
    """The rates of transformers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings.lr)
    scheduler = get_scheduler(NAMES[settings.schedule], optimizer, math.ceil(settings.warmup * total), total)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("schedule", NAMES)
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.3, 0.99])
@pytest.mark.parametrize("total", [2, 3, 10, 61])
def test_every_step_has_the_rate_of_transformers(schedule: Any, warmup: float, total: int) -> None:
    settings = TrainSettings(lr=0.7, schedule=schedule, warmup=warmup)
    assert [0.7 * settings.share(step, total) for step in range(total)] == pytest.approx(
        theirs(settings, total), abs=1e-12
    )


def task_in(round: int, rounds: int, **settings: Any) -> ClientTask:
    row: Any = torch.ones(1, 1, dtype=torch.bool).numpy()
    return ClientTask(round, 0, 0, Adapter({}), row, TrainSettings(**settings), rounds=rounds)


@pytest.mark.parametrize("schedule", NAMES)
def test_rounds_of_a_run_are_one_schedule(schedule: Any) -> None:
    """Four rounds of five steps are twenty steps; each round alone is five."""
    how = {"lr": 0.7, "schedule": schedule, "warmup": 0.3}
    of_run = [each for r in range(4) for each in shares(task_in(r, 4, **how), 5)]
    assert [0.7 * each for each in of_run] == pytest.approx(theirs(TrainSettings(**how), 20), abs=1e-12)
    alone = shares(task_in(2, 4, **how, schedule_over="round"), 5)
    assert [0.7 * each for each in alone] == pytest.approx(theirs(TrainSettings(**how), 5), abs=1e-12)


def test_clients_of_unequal_data_are_at_the_same_place() -> None:
    how: dict[str, Any] = {"schedule": "linear"}
    assert shares(task_in(3, 4, **how), 2)[0] == shares(task_in(3, 4, **how), 50)[0] == 0.25


def test_by_default_the_rate_is_constant_to_the_bit() -> None:
    assert shares(task_in(3, 4), 7) == [1.0] * 7


def test_a_lone_step_has_no_warmup() -> None:
    """Its rate would be 0, and a client with one batch would learn nothing in any round."""
    assert shares(task_in(0, 1, warmup=0.5), 1) == [1.0]


def test_beyond_the_end_nothing_rises_again() -> None:
    """A task that says it is in round 5 of 4."""
    assert [TrainSettings(schedule=s).share(9, 8) for s in ("linear", "cosine")] == [0.0, 0.0]


@pytest.mark.parametrize("length", [{"epochs": 2}, {"steps": 10}])
def test_training_takes_these_rates(length: dict[str, int], base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """18 examples in batches of 4 are 5 steps an epoch."""
    rates: list[float] = []
    step = hellora.client.train.step_clipped

    def noting(optimizer: torch.optim.Optimizer, *rest: Any) -> None:
        rates.extend(group["lr"] for group in optimizer.param_groups)
        step(optimizer, *rest)

    monkeypatch.setattr(hellora.client.train, "step_clipped", noting)
    task = bases.task_of(base, [3], lr=0.01, schedule="cosine", warmup=0.1, **length)
    train_client(replace(task, round=1, rounds=3), base, KIND, bases.texts(18))
    assert rates == pytest.approx(theirs(task.train, 30)[10:20], abs=1e-12)


def variates(base: BaseModel, **settings: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """What SCAFFOLD reports of a first task, what it received, what it trained."""
    task = bases.task_of(base, [2], optimizer="sgd", weight_decay=0.0, lr=0.1, **settings)
    update = train_client(replace(task, brief=blank(base, task)), base, KIND, bases.texts(12), (Scaffold(),))
    report = {name.removeprefix("scaffold/"): tensor for name, tensor in update.report.items()}
    return report, dict(task.adapter.tensors()), dict(update.adapter.tensors())


def blank(base: BaseModel, task: ClientTask) -> dict[str, Tensor]:
    rank = base.spec.max_rank
    found = {f"head.{name}": torch.zeros_like(tensor) for name, tensor in task.adapter.head.items()}
    for module in base.spec.modules:
        if task.trained[module.layer].any():
            found[f"{module.name}.lora_A"] = torch.zeros(rank, module.d_in)
            found[f"{module.name}.lora_B"] = torch.zeros(module.d_out, rank)
    return {f"scaffold/{name}": tensor for name, tensor in found.items()}


def test_scaffold_divides_by_the_sum_of_the_rates(base: BaseModel) -> None:
    """Rates of .1, .2/3 and .1/3: together .2, and not 3 × .1."""
    report, before, after = variates(base, steps=3, schedule="linear")
    for name, tensor in report.items():
        torch.testing.assert_close(tensor, (before[name] - after[name]) / 0.2, atol=1e-5, rtol=1e-4)
        assert tensor.abs().max() > 0


def test_scaffold_learns_nothing_of_a_step_without_a_rate(base: BaseModel) -> None:
    """One step in the first of 4 rounds, with warm-up: it has a rate of 0."""
    task = replace(bases.task_of(base, [2], optimizer="sgd", steps=1, warmup=0.5), rounds=4)
    update = train_client(replace(task, brief=blank(base, task)), base, KIND, bases.texts(4), (Scaffold(),))
    assert all(not tensor.any() for tensor in update.report.values())
    assert not update.kept


@pytest.mark.parametrize("schedule", NAMES)
def test_a_round_has_the_mean_share_of_its_steps(schedule: Any) -> None:
    settings = TrainSettings(schedule=schedule, warmup=0.2, steps=4)
    for round in range(5):
        own = shares(task_in(round, 5, schedule=schedule, warmup=0.2, steps=4), 4)
        assert settings.share_of_round(round, 5) == pytest.approx(sum(own) / 4)
    assert TrainSettings(schedule=schedule, schedule_over="round").share_of_round(3, 5) == 1.0
    assert TrainSettings().share_of_round(3, 5) == 1.0
