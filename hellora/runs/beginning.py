"""Begin a run: the state before round 0, evaluated and saved, and its head solved where the method asks for that."""

import hashlib
import math
import traceback
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hellora.client import not_finite
from hellora.core.errors import HelloraError, InputError, nearest
from hellora.core.state import Attempt, RoundReport, ServerState
from hellora.experiments.setup import Setup
from hellora.model.origin import Origin
from hellora.model.resident import BaseModel
from hellora.record.answers import write_answers
from hellora.record.checkpoint import save_state
from hellora.record.run_folder import RunFolder
from hellora.server.backend import Backend
from hellora.server.heads import solved_first


def start(setup: Setup, folder: RunFolder, origin: Origin) -> tuple[ServerState, dict[str, Any]]:
    """Make the state before round 0, evaluate and save it."""
    state = setup.initial_state()
    labels = list(setup.corpus.labels)  # so that what was trained can be used without the data
    try:
        found = setup.evaluate(state)
    except HelloraError:
        raise
    except Exception as error:  # whatever a model's code raises
        raise InputError(f"model.name: {setup.experiment.model.name!r} {why_it_fails(setup.base, error)}") from error
    initial = found.metrics
    if not math.isfinite(initial.get("loss", 0.0)):
        why = (
            not_finite.in_model(setup.base, state.adapter)
            or "its weights are finite, not so what it makes of these examples"
        )
        raise InputError(
            f"model.name: the loss of {setup.experiment.model.name!r} is {initial['loss']} before training: {why}"
        )
    check_metric(setup, state)
    record = {
        "initial": {} if setup.measured_by_clients else initial,  # it is not on what later metrics are on
        "clients": setup.clients,
        "labels": labels,
        "task": setup.experiment.task_settings,  # with what it found of the data
        "turns": setup.corpus.has_turns,
        "run": setup.run_id,
        "data": setup.corpus.fingerprint,
        "base": origin.to_json(),
        "lines": hashlib.sha256().hexdigest(),
    }
    if found.answers:
        write_answers(folder.answers, None, [asdict(answer) for answer in found.answers])
    save_state(folder.checkpoint, state, record)
    return state, record


def check_metric(setup: Setup, state: ServerState) -> None:
    """Raise InputError where a run is to end early by a metric that is not measured."""
    if not (name := setup.experiment.stop.metric):
        return
    known = setup.validate(state).metrics
    if name not in known:
        raise InputError(f"stop.metric = {name!r} is not measured{nearest(name, sorted(known))}")


def why_it_fails(base: BaseModel, error: Exception) -> str:
    """Say what of a model fails, and where, when it is first used."""
    family, said = base.net.config.model_type, " ".join(str(error).split())[:300]
    where = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"({family}) fails on the first examples, in {Path(where.filename).name}, line {where.lineno} "
        f"({type(error).__name__}: {said}): name another model"
    )


def with_solved_head(
    setup: Setup, folder: RunFolder, state: ServerState, record: Mapping[str, Any], backend: Backend
) -> tuple[ServerState, dict[str, Any]]:
    """Return the state with its head solved before round 0, evaluated and saved, and the record with the metrics and
    the waves of clients that were asked; both as they are where that is done or not asked for.
    """
    after, waves = solved_first(setup.federation, state, backend)
    if not waves:
        return state, dict(record)
    metrics = {} if setup.measured_by_clients else setup.evaluate(after, asks=False).metrics
    found = {"metrics": metrics, "waves": [asdict(wave) for wave in waves]}
    record = {**record, "solved": found}
    save_state(folder.checkpoint, after, record)
    return after, record


def with_first_waves(report: RoundReport, record: Mapping[str, Any]) -> RoundReport:
    """Return the report of round 0 with the waves before it, which a resumed run has on record; others as they are."""
    if report.round or "solved" not in record:
        return report
    waves = [Attempt(**{name: by_client(value) for name, value in wave.items()}) for wave in record["solved"]["waves"]]
    return replace(report, sums=(*waves, *report.sums))


def by_client(value: Any) -> Any:
    """Undo what JSON does to a field of an attempt: clients are numbers, in a mapping, too, and lists are tuples."""
    if isinstance(value, dict):
        return {int(client): found for client, found in value.items()}
    return tuple(value) if isinstance(value, list) else value
