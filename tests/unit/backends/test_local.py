"""The local backend: the same bits for any number of processes; a client that fails costs only its own update."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess, SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

import bases
import numpy as np
import pytest
import torch
from factories import bits, orders_of

from hellora.backends.local import LocalBackend, Worker, libraries_of
from hellora.backends.wire import read_answer
from hellora.client.work import ClientWork
from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate, WireFormat
from hellora.core.types import ClientProfile
from hellora.methods.local_training.layer_scores import LayerScores
from hellora.model.resident import BaseModel
from hellora.server.backend import Order

CLIENTS = 12
ENDLESS = 11  # the client with the most rows, so that the first process gets it
BROKEN = 3  # a client with a label that the head does not have
PROFILES = tuple(ClientProfile(i, 4 + i) for i in range(CLIENTS))


@pytest.fixture(scope="module")
def work(tiny_bert: Path) -> ClientWork:
    """Twelve clients of 4 to 15 rows; dropout in the model and in the adapter."""
    base = bases.load(tiny_bert, dropout=0.1)
    edges = np.cumsum([0, *(p.num_examples for p in PROFILES)])
    rows = bases.texts(int(edges[-1]))
    labels = [99 if edges[BROKEN] == i else label for i, label in enumerate(rows["label"])]
    rows = rows.remove_columns("label").add_column("label", labels)
    return ClientWork(
        base, bases.MEAN_POOLING, rows, [np.arange(edges[i], edges[i + 1]) for i in range(CLIENTS)], (LayerScores(),)
    )


@pytest.fixture(scope="module")
def pool(work: ClientWork) -> Iterator[LocalBackend]:
    """Two processes for the whole file."""
    backend = LocalBackend(work, PROFILES, workers=2)
    yield backend
    workers = list(backend.pool)
    backend.close()
    assert len(workers) == 2
    assert not any(worker.process.is_alive() for worker in workers)
    assert backend.pool == []


def tasks_for(work: ClientWork, clients: Sequence[int], **settings: Any) -> list[ClientTask]:
    """Unequal rows of layers, unequal seeds."""
    adapter = bases.acting_adapter(work.base)
    tasks = []
    for client in clients:
        layers = [[0, 1, 2, 3], [1, 3], [2, 3], [0]][client % 4]
        task = bases.task_of(work.base, layers, adapter, seed=100 + client, **settings)
        tasks.append(replace(task, client=client))
    return tasks


def orders_for(work: ClientWork, clients: Sequence[int], **settings: Any) -> list[Order]:
    return orders_of(tasks_for(work, clients, **settings))


def comparable(answer: ClientUpdate | ClientFailure) -> Any:
    """All of an answer but what was measured of the machine."""
    if isinstance(answer, ClientFailure):
        return answer
    metrics = {name: value for name, value in answer.metrics.items() if name not in ("seconds", "peak_bytes")}
    return answer.round, answer.num_examples, metrics, bits(answer.adapter.tensors()), bits(answer.report)


def by_client(answers: Sequence[ClientUpdate | ClientFailure]) -> dict[int, Any]:
    assert len({answer.client for answer in answers}) == len(answers), "one answer per client"
    return {answer.client: comparable(answer) for answer in answers}


def base_bits(base: BaseModel) -> Any:
    assert base.head is not None
    return bits(base.net.state_dict()), bits(base.head.state_dict())


def test_two_processes_give_the_bits_of_one(work: ClientWork, pool: LocalBackend) -> None:
    """Twelve clients, one of which raises: whoever trains them, and after whom."""
    before = base_bits(work.base)
    orders = orders_for(work, range(CLIENTS), epochs=2)
    alone = by_client(list(LocalBackend(work, PROFILES).train(orders)))
    assert by_client(list(pool.train(orders))) == alone
    assert by_client(list(pool.train(orders[::-1]))) == alone
    assert base_bits(work.base) == before
    assert sum(isinstance(answer, ClientFailure) for answer in alone.values()) == 1
    updates = [answer for answer in alone.values() if not isinstance(answer, ClientFailure)]
    assert len({str(update) for update in updates}) == CLIENTS - 1


@pytest.mark.parametrize("format", ["int8", pytest.param("bf16", marks=pytest.mark.slow)])
def test_rounded_numbers_are_the_same_for_any_number_of_processes(format: WireFormat, work: ClientWork) -> None:
    """And are rounded: tasks on their way down, so that training differs, and deltas on their way up."""
    orders = orders_for(work, [0, 1, BROKEN])
    exact = by_client(list(LocalBackend(work, PROFILES).train(orders)))
    alone = by_client(list(LocalBackend(work, PROFILES, format=format).train(orders)))
    with LocalBackend(work, PROFILES, workers=2, format=format) as pool:
        assert by_client(list(pool.train(orders))) == alone
    assert isinstance(alone[BROKEN], ClientFailure)
    assert all(alone[client] != exact[client] for client in (0, 1))


def test_an_answer_that_is_none_is_rejected(work: ClientWork) -> None:
    """A process that answers for another client than it was asked."""

    class Lying(ClientWork):
        def train(self, task: ClientTask) -> ClientUpdate:
            return replace(super().train(task), client=task.client + 1)

    lying = Lying(work.base, work.kind, work.data, work.parts)
    (answer,) = LocalBackend(lying, PROFILES, format="bf16").train(orders_for(work, [0]))
    assert answer == ClientFailure(0, "rejected", "it answered for client 1")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_client_that_raises_is_rejected_with_its_reason(workers: int, work: ClientWork, pool: LocalBackend) -> None:
    before = base_bits(work.base)
    backend = pool if workers == 2 else LocalBackend(work, PROFILES)
    answers = {answer.client: answer for answer in backend.train(orders_for(work, [1, BROKEN, 5]))}
    failure = answers[BROKEN]
    assert isinstance(failure, ClientFailure)
    assert failure.kind == "rejected"
    assert failure.reason.startswith("IndexError: ")
    assert "99" in failure.reason
    assert isinstance(answers[1], ClientUpdate)
    assert isinstance(answers[5], ClientUpdate)
    assert base_bits(work.base) == before
    assert not any(module.training for module in work.base.net.modules())


def test_a_killed_process_costs_its_client_and_is_replaced(work: ClientWork, pool: LocalBackend) -> None:
    """One is killed in training, the other between two rounds."""
    list(pool.train(orders_for(work, [0, 1])))  # both are up
    endless, quick = tasks_for(work, [ENDLESS, 0], steps=10**7)
    quick = replace(quick, train=replace(quick.train, steps=1))
    in_training, idle = old = list(pool.pool)
    answers = pool.train(orders_of([quick, endless]))
    assert next(answers).client == 0
    kill(in_training)
    assert list(answers) == [ClientFailure(ENDLESS, "missing", "its process died (exit status -9)")]
    kill(idle)
    second = list(pool.train(orders_for(work, [4, 5, 6, 7])))
    assert sorted(answer.client for answer in second) == [4, 5, 6, 7]
    (failure,) = [answer for answer in second if isinstance(answer, ClientFailure)]
    assert (failure.kind, failure.reason) == ("missing", "its process died (exit status -9)")
    assert not any(worker.process.is_alive() for worker in old)
    assert not set(pool.pool) & set(old)
    orders = orders_for(work, [2, 4, 6, 8])
    assert by_client(list(pool.train(orders))) == by_client(list(LocalBackend(work, PROFILES).train(orders)))


def kill(worker: Worker) -> None:
    assert worker.process.pid is not None
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.process.join()


def test_ctrl_c_is_the_parents_to_handle(work: ClientWork, pool: LocalBackend) -> None:
    list(pool.train(orders_for(work, [0, 1])))
    for worker in pool.pool:
        assert worker.process.pid is not None
        os.kill(worker.process.pid, signal.SIGINT)
    answers = list(pool.train(orders_for(work, [0, 1])))
    assert all(isinstance(answer, ClientUpdate) for answer in answers)


def test_weights_are_shared_and_threads_are_the_parents(work: ClientWork, pool: LocalBackend) -> None:
    assert len(pool.pool) == 2
    assert work.base.head is not None
    assert all(p.is_shared() for p in [*work.base.net.parameters(), *work.base.head.parameters()])
    assert [w.device for w in pool.pool] == ["cpu", "cpu"]
    assert torch.get_num_threads() == 1


def test_the_processes_end_with_the_run(work: ClientWork) -> None:
    """Even if they are still starting."""
    with LocalBackend(work, PROFILES, workers=2) as backend:
        workers = list(backend.pool)
        assert all(worker.process.is_alive() for worker in workers)
    assert not any(worker.process.is_alive() for worker in workers)
    backend.close()  # twice does no harm


@pytest.mark.skipif(sys.platform != "linux", reason="forks only on Linux")
def test_imports_are_made_once_for_all_processes(work: ClientWork, pool: LocalBackend) -> None:
    """They are forked from one that has the libraries, and not what a person wrote."""
    assert all(isinstance(worker.process, ForkServerProcess) for worker in pool.pool)
    libraries = libraries_of([work.data, *work.base.net.modules()])
    assert {"datasets.arrow_dataset", "transformers.models.bert.modeling_bert"} <= set(libraries)
    own = type("Own", (torch.nn.Linear,), {"__module__": "own"})
    assert libraries_of([own(1, 1), torch.nn.Linear(1, 1)]) == ["torch.nn.modules.linear"]


def test_who_cannot_be_forked_is_spawned(work: ClientWork, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers on a GPU, and of a model of many tensors: no process is started to fork them from."""
    contexts: list[Any] = []
    monkeypatch.setattr(Worker, "start", lambda _self, context, _work: contexts.append(context))
    Worker(work, "cuda:0", "fp32")
    monkeypatch.setattr("hellora.backends.local.MOST_SHARED", 8)
    Worker(work, "cpu", "fp32")
    assert [type(context) for context in contexts] == [SpawnContext] * 2


def test_more_tensors_than_a_fork_is_handed_come_to_a_spawned_process(
    work: ClientWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forkserver, "MAXFDS_TO_SEND", 8)
    worker, (task,) = Worker(work, "cpu", "fp32"), tasks_for(work, [0])
    assert isinstance(worker.process, SpawnProcess)
    worker.send(task)
    answer = read_answer(worker.connection.recv_bytes(), task, work.base.spec)
    worker.stop()
    assert comparable(answer) == comparable(work.attempt(task))


def test_one_process_is_this_one(work: ClientWork) -> None:
    backend = LocalBackend(work, PROFILES)
    assert backend.pool == []
    assert backend.clients() == PROFILES
    answers = backend.train(orders_for(work, [2, 0]))
    assert [answer.client for answer in answers] == [2, 0]
