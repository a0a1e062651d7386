"""Runs whose clients, model and evaluation cost nothing: the loop is real, and what it does to its files."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from factories import FakeBackend, fleet_of, method_of, random_adapter, tiny_spec

import hellora.runs.run as running
from hellora.client.evaluation import Evaluation
from hellora.core.exchange import ClientTask, ClientUpdate, TrainSettings
from hellora.core.state import ServerState
from hellora.experiments.config import check
from hellora.experiments.experiment import Experiment
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.everything import Everything
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.server_optimizers.average import Average
from hellora.model.origin import Origin
from hellora.server.federation import Federation

SPEC = tiny_spec(num_layers=1, max_rank=2)
FLEET = fleet_of(1, 1)


class Listening:
    """A Progress that keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.first_round = -1

    def noted(self, note: str) -> None:
        self.notes.append(note)

    def started(self, setup: Any, initial: Any, first_round: int) -> None:
        self.first_round = first_round

    def loading(self, *_: Any) -> None: ...
    def head_solved(self, *_: Any) -> None: ...
    def round_started(self, *_: Any) -> None: ...
    def client_answered(self, *_: Any) -> None: ...
    def round_finished(self, *_: Any) -> None: ...


class SameNoise(FakeBackend):
    """Noise that does not depend on the order of a head's tensors, which a file does not keep."""

    def trained(self, task: ClientTask) -> ClientUpdate:
        head = dict(sorted(task.adapter.head.items()))
        return super().trained(replace(task, adapter=replace(task.adapter, head=head)))


@cache
def experiment_of(**changes: Any) -> Experiment:
    table = {"rounds": 5, "cohort": 2, "data": {"clients": 2}, "compute": {"threads": 1, "device": "cpu"}}
    return check("small", {**table, **changes})


def small_setup(experiment: Experiment, evaluate: Callable[[ServerState], Mapping[str, float]]) -> Any:
    """What a run takes of a Setup."""
    method = method_of(Everything(), Whole(), ParticipantMean(), server_optimizer=Average(momentum=0.5))
    rounds = experiment.run.rounds
    run = Federation(SPEC, FLEET, method, rounds, cohort=2, seed=7, train=TrainSettings(), max_norm="auto")

    @contextmanager
    def backend() -> Iterator[SameNoise]:
        yield SameNoise(FLEET, SPEC)

    return SimpleNamespace(
        experiment=experiment,
        federation=run,
        base=SimpleNamespace(spec=SPEC),
        corpus=SimpleNamespace(fingerprint="f" * 64, labels=("a", "b"), has_turns=False),
        clients={},
        measured_by_clients=False,
        run_id="run",
        initial_state=lambda: ServerState(0, random_adapter(SPEC, seed=1)),
        evaluate=lambda state, **_: Evaluation(evaluate(state)),
        evaluate_prototypes=lambda _: {},
        backend=backend,
    )


def bias_of(state: ServerState) -> dict[str, float]:
    return {"accuracy": 0.5, "loss": float(state.adapter.head["bias"].double().sum())}


def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out of a run what needs a model, what is never twice the same, and what only a machine that stops needs."""

    def save_adapter(draft: Path, trained: Any, _: Path) -> None:
        draft.mkdir()
        (draft / "adapter.txt").write_text(f"{trained.lines[-1]['metrics']}")

    monkeypatch.setattr(running, "origin_of", lambda _, record: Origin.from_json(record.get("base")))
    monkeypatch.setattr(running, "fleet_record", lambda _: {})
    monkeypatch.setattr(running, "save_adapter", save_adapter)
    monkeypatch.setattr(running, "served", lambda *_: {})
    monkeypatch.setattr(running, "data_record", lambda _: {})
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(running, "LIBRARIES", ())
    monkeypatch.setattr(running, "resolve_name", lambda name: name)
    monkeypatch.setattr(running, "Trained", lambda *parts, **_: SimpleNamespace(lines=parts[5]))
    monkeypatch.setattr(running, "time", SimpleNamespace(perf_counter=lambda: 0.0, monotonic=time.monotonic))


def run_small(
    out: Path,
    resume: bool = False,
    from_round: int | None = None,
    evaluate: Callable[[ServerState], Mapping[str, float]] = bias_of,
    **changes: Any,
) -> Listening:
    """Run, or go on with, the experiment in a folder."""
    heard = Listening()
    running.run_experiment(
        experiment_of(**changes),
        out,
        heard,
        resume,
        lambda experiment, _: small_setup(experiment, evaluate),
        from_round,
    )
    return heard


def outcome(out: Path) -> dict[str, bytes]:
    """Every file of a run that counts, by name."""
    files = {str(file.relative_to(out)): file for file in out.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in sorted(files.items()) if "-after-" not in name}
