"""What a server may ask a client to sum, and how the client's own limits bind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import bases
import numpy as np
import pytest
import torch
from factories import bits

from hellora.client.features import Features, features_of
from hellora.client.work import ClientWork
from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate, TrainSettings
from hellora.core.sums import BATCH
from hellora.core.types import Adapter, Budget
from hellora.deployment.own_limits import OwnLimits
from hellora.methods.starts.ridge import Ridge
from hellora.model.resident import BaseModel
from hellora.tasks.common.texts import TextTask

WIDTH, CLASSES = 32, len(bases.LABELS)


@pytest.fixture(scope="module")
def base(tiny_bert: Path) -> BaseModel:
    return bases.load(tiny_bert)


@pytest.fixture(scope="module")
def work(base: BaseModel) -> ClientWork:
    rows = bases.texts(20)
    return ClientWork(base, bases.MEAN_POOLING, rows, [np.arange(12), np.arange(12, 20)], (), Ridge())


def brief(**changes: Any) -> dict[str, torch.Tensor]:
    told = {"bits": torch.tensor(20), "scales": torch.full((WIDTH + 1,), 8.0, dtype=torch.float64)}
    told |= changes
    return {f"start/{name}": value for name, value in told.items() if value is not None}


def asks(work: ClientWork, step: str = "sums", client: int = 0, **changes: Any) -> ClientTask:
    spec = work.base.spec
    row = np.zeros((spec.num_layers, spec.max_rank), dtype=bool)
    return ClientTask(0, client, 0, Adapter({}), row, TrainSettings(), "frozen", brief=brief(**changes), sums=step)


def test_a_client_sums_its_own_rows(work: ClientWork) -> None:
    answer = work.attempt(asks(work, client=1))
    assert isinstance(answer, ClientUpdate)
    assert answer.num_examples == 8
    assert not answer.adapter.pairs
    assert not answer.adapter.head
    counts = np.bincount(work.data["label"][12:20], minlength=CLASSES)
    assert answer.report["start/counts"].tolist() == counts.tolist()


def test_examples_without_a_class_are_left_out(base: BaseModel) -> None:
    rows = bases.texts(12)
    some = rows.remove_columns("label").add_column("label", [*rows["label"][:9], -100, -100, -100])
    both = [ClientWork(base, bases.MEAN_POOLING, each, None, (), Ridge()) for each in (rows.select(range(9)), some)]
    wanted, found = (each.attempt(asks(each)) for each in both)
    assert isinstance(wanted, ClientUpdate)
    assert isinstance(found, ClientUpdate)
    assert bits(found.report) == bits(wanted.report)
    assert found.num_examples == 9


@pytest.mark.parametrize(
    ("step", "changes", "why"),
    [
        ("secrets", {}, "ridge has no pass 'secrets'"),
        ("sums", {"bits": torch.tensor(60)}, "start/bits has values outside 1 to 24"),
        ("sums", {"bits": None}, "start/bits is absent"),
        ("sums", {"scales": torch.full((WIDTH + 1,), float("nan")).double()}, "start/scales has nan"),
        ("sums", {"scales": torch.ones(4).double()}, "start/scales is torch.float64"),
        ("sums", {"scales": torch.full((WIDTH + 1,), 2.0**-15).double()}, "larger than the run's public scale"),
        ("sums", {"projection": torch.tensor([1, 10**9])}, "projected to 1000000000 numbers, and have 32"),
        ("sums", {"projection": torch.tensor([1, 0])}, "projected to 0 numbers"),
        ("sums", {"more": torch.tensor(1)}, "start/more was not declared"),
        ("losses", {}, "start/weight is absent"),
    ],
)
def test_what_a_server_cannot_ask_is_refused(step: str, changes: dict[str, Any], why: str, work: ClientWork) -> None:
    answer = work.attempt(asks(work, step, **changes))
    assert isinstance(answer, ClientFailure)
    assert why in answer.reason


@pytest.mark.parametrize("step", ["exponents", "losses", "sums"])
def test_nothing_is_summed_where_the_run_solves_no_head(step: str, base: BaseModel) -> None:
    """Whatever its server asks for."""
    work = ClientWork(base, bases.MEAN_POOLING, bases.texts(9), None)
    task = asks(work, step, bits=None, scales=None)
    weight = torch.zeros(CLASSES, WIDTH + 1, dtype=torch.float64)
    full = {**brief(), "start/weight": weight} if step == "losses" else dict(task.brief)
    answer = work.attempt(replace(task, brief=full))
    assert isinstance(answer, ClientFailure)
    assert "the run solves no head" in answer.reason


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples each forward pass has."""
    found: list[int] = []
    logits = TextTask.logits

    def counted(kind: Any, base: Any, batch: Any) -> torch.Tensor:
        found.append(len(batch["input_ids"]))
        return logits(kind, base, batch)

    monkeypatch.setattr(TextTask, "logits", counted)
    return found


def test_features_are_computed_once_for_all_passes(work: ClientWork, forwards: list[int]) -> None:
    work.features.forget()
    work.attempt(asks(work, "sums"))
    once = len(forwards)
    work.attempt(asks(work, "sums"))
    assert len(forwards) == once > 0
    acting = replace(asks(work), adapter=replace(bases.acting_adapter(work.base), head={}))
    work.attempt(acting)
    assert len(forwards) == 2 * once  # the network is another


def test_clients_of_one_process_fill_each_others_batches(base: BaseModel, forwards: list[int]) -> None:
    """With batches of one client's examples each, many small clients would compute most examples several times."""
    rows = bases.texts(60)
    encoded = bases.MEAN_POOLING.encode(base, rows)
    expected = features_of(Adapter({}), base, bases.MEAN_POOLING, encoded)
    forwards.clear()
    features = Features(base, bases.MEAN_POOLING, encoded)
    for part in np.array_split(np.random.default_rng(0).permutation(60), 12):
        assert torch.equal(features.of(Adapter({}), part), expected[part])
    _, counts = np.unique(encoded.lengths, return_counts=True)
    assert forwards == [BATCH] * int((-(-counts // BATCH)).sum())


def test_a_client_without_labels_says_so(base: BaseModel) -> None:
    rows = bases.texts(4).remove_columns("label")
    work = ClientWork(base, bases.MEAN_POOLING, rows, None, (), Ridge())
    work.__dict__["encoded"] = bases.MEAN_POOLING.encode(base, bases.texts(4))
    answer = work.attempt(asks(work))
    assert isinstance(answer, ClientFailure)
    assert "no labels" in answer.reason


def test_a_sum_takes_no_steps_and_no_layers(work: ClientWork) -> None:
    limits = OwnLimits(Budget(layers=0), max_steps=1, max_batch=1)
    assert limits.excess(asks(work), 20, lambda _: pytest.fail("nothing is predicted")) is None
