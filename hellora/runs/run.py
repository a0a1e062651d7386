"""Run an experiment in its folder: a line and a checkpoint per round, resume after any kill, the adapter."""

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from hellora.client.per_class import by_name
from hellora.core.errors import InputError
from hellora.core.metrics import asked_for
from hellora.core.state import RoundReport, ServerState
from hellora.core.version import __version__
from hellora.experiments.experiment import Experiment
from hellora.experiments.machine import threads
from hellora.experiments.prepare import prepare
from hellora.experiments.setup import Setup
from hellora.model.location import resolve_name
from hellora.model.origin import Origin
from hellora.record.answers import AnswerLine, read_answers, write_answers
from hellora.record.atomic import write_atomically
from hellora.record.checkpoint import save_state
from hellora.record.last_good import LastGood, last_good
from hellora.record.round_line import Line, round_line
from hellora.record.run_folder import RunFolder, encoded
from hellora.record.sealed import sealed_json
from hellora.results.adapter_folder import save_adapter
from hellora.results.trained import Trained
from hellora.runs.beginning import start, with_first_waves, with_solved_head
from hellora.runs.evaluations import Evaluations
from hellora.runs.fleet_record import fleet_record
from hellora.runs.groups import served
from hellora.runs.observer import Progress, ReportingBackend
from hellora.runs.tracking import check_trackers, tracking
from hellora.server.rounds import federate

LIBRARIES = ("torch", "transformers", "peft", "datasets", "numpy")


Record = Mapping[str, Any]  # what a checkpoint holds besides the state
Rounds = Generator[Line, None, Mapping[str, Any]]  # what a run yields, and returns in the end
Prepare = Callable[[Experiment, Record], Setup]  # the record is that of the run to go on with, else {}


def run_experiment(
    experiment: Experiment,
    out: Path,
    progress: Progress,
    resume: bool = False,
    preparing: Prepare = lambda experiment, _: prepare(experiment),
    from_round: int | None = None,
) -> Mapping[str, Any]:
    """Run (or go on with) an experiment in the folder `out`.

    Args:
        experiment: what `read_experiment` returns
        out: a new folder, or one of a run of the same experiment
        progress: what is told how it goes
        resume: go on after the last whole round in `out`
        preparing: how to prepare the experiment; it says where the clients are, on this machine unless it is given
        from_round: go back to before this round, of which a state is kept, and go on from there

    Returns:
        The summary, as in `summary.json`.

    Raises:
        InputError: settings, data, model or folder do not fit; nothing has been computed.
        RunError: a round got too few usable updates, or a strategy raised; everything before it is kept.
    """
    rounds = run_rounds(experiment, out, progress, resume, preparing, from_round)
    while True:
        try:
            next(rounds)
        except StopIteration as end:
            return cast(Mapping[str, Any], end.value)


def run_rounds(
    experiment: Experiment,
    out: Path,
    progress: Progress,
    resume: bool = False,
    preparing: Prepare = lambda experiment, _: prepare(experiment),
    from_round: int | None = None,
) -> Rounds:
    """Do as `run_experiment` does, and yield the line of each round once it is safe on disk; return the summary.

    Who closes the generator between two rounds leaves a folder that can be gone on with.
    """
    if from_round is not None and not resume:
        raise InputError("--from-round goes back in a run that is there: give --resume, too")
    check_trackers(experiment.tracking)
    folder = RunFolder(out)
    with folder.claim(experiment, resume) as begun, folder.tracing():
        if folder.summary.exists() and from_round is None:
            return folder.read_summary()
        same = begun.compute.threads if begun else 0  # results depend on the threads
        experiment = experiment.with_threads(experiment.compute.threads or same or threads(experiment))
        return (yield from rounds_in(folder, experiment, progress, preparing, from_round))


def rounds_in(
    folder: RunFolder, experiment: Experiment, progress: Progress, preparing: Prepare, from_round: int | None
) -> Rounds:
    """Run, or go on with, an experiment in the folder that it claimed; yield each round's line, return the summary."""
    found = last_good(folder, from_round)
    lines, before = (found.lines, found.record) if found else ([], {})
    tell_where(progress, experiment, folder, found)
    setup = preparing(experiment, before)
    check_data(setup, before)
    origin = origin_of(setup, before)
    folder.begin(experiment, lines, back=found is not None and found.back)
    record_fleet(folder, setup)
    evaluations, digest = Evaluations(setup, lines), hashlib.sha256(b"".join(map(encoded, lines)))
    with tracking(experiment, folder.path, lines) as tracked, setup.backend() as backend:
        state, record = (found.state, found.record) if found else start(setup, folder, origin)
        progress.started(setup, last_metrics(lines) if lines else record["initial"], state.round)
        tell_first(progress, [] if found else read_answers(folder.answers))
        clock, reporting = time.perf_counter(), ReportingBackend(backend, progress)
        state, record = with_solved_head(setup, folder, state, record, reporting)
        if state.round == 0 and "solved" in record:
            progress.head_solved(record["solved"]["metrics"])
        going = federate(state, setup.federation, reporting, setup, evaluations.problem_with)
        while not evaluations.ended() and (report := next(going, None)) is not None:
            report = with_first_waves(report, record)
            state, now = report.state, time.perf_counter()
            answers = write_round(folder, lines, report, evaluations, now - clock)
            clock = now
            digest.update(encoded(lines[-1]))
            save_state(folder.checkpoint, state, record | {"lines": digest.hexdigest()}, experiment.run.keep)
            tracked.tell(lines)
            tell_round(progress, lines[-1], answers)
            now = time.perf_counter()
            yield lines[-1]
            clock += time.perf_counter() - now  # what the caller does is no part of a round
    if ended := evaluations.ended():
        progress.noted(f"stopped early: {ended.why}")
    return finish(setup, folder, state, evaluations, record, lines, origin)


def write_round(
    folder: RunFolder, lines: list[Line], report: RoundReport, evaluations: Evaluations, seconds: float
) -> Sequence[AnswerLine]:
    """Write the line of a finished round below those before it, and what was answered after it; return the answers."""
    lines.append(round_line(report, evaluations.of(report), seconds, lines[-1] if lines else None))
    folder.append(lines[-1])
    return write_answers(folder.answers, report.round, evaluations.answers)


def record_fleet(folder: RunFolder, setup: Setup) -> None:
    """Write who takes part and, where budgets ask for it, what training was counted to cost."""
    write_atomically(folder.clients, json.dumps(fleet_record(setup)).encode())
    if (planner := setup.federation.planner) is not None:
        write_atomically(folder.costs, json.dumps(planner.model.as_record()).encode())


def tell_where(progress: Progress, experiment: Experiment, folder: RunFolder, found: LastGood | None) -> None:
    """Tell what is about to be loaded, and what there is to know of the state that the run goes on from."""
    progress.loading(experiment, folder.path)
    for note in found.notes if found else ():
        progress.noted(note)


def tell_first(progress: Progress, answers: Sequence[AnswerLine]) -> None:
    """Tell what is answered before training."""
    if answers:
        progress.answered(None, answers)


def tell_round(progress: Progress, line: Line, answers: Sequence[AnswerLine]) -> None:
    """Tell that a round is finished, and what was answered after it."""
    progress.round_finished(line)
    if answers:
        progress.answered(line["round"], answers)


def last_metrics(lines: Sequence[Line]) -> Mapping[str, float]:
    """Return the metrics of the last round that was evaluated, {} where none was."""
    return next((line["metrics"] for line in reversed(lines) if line["metrics"] is not None), {})


def check_data(setup: Setup, record: Mapping[str, Any]) -> None:
    """Raise InputError where the run began with other data; of an older run that is not known."""
    now = setup.corpus.fingerprint
    if record.get("data", now) != now:
        raise InputError(
            f"--resume: the data of {setup.experiment.data.name} are not those that the run began with: bring them "
            f"back, or start a new run"
        )


def origin_of(setup: Setup, record: Mapping[str, Any]) -> Origin:
    """Describe the base. Raise InputError where the run began with another one; of an older run that is not known."""
    origin, before = Origin.of(setup.base, setup.experiment.model), Origin.from_json(record.get("base"))
    if before.fingerprint not in (None, origin.fingerprint):
        raise InputError(
            f"model.name: {setup.experiment.model.name} is another base than the run began with (its weights have the "
            f"fingerprint {origin.fingerprint}, not {before.fingerprint}): put that one back, or start a new run"
        )
    return before if before.fingerprint else origin


def finish(
    setup: Setup,
    folder: RunFolder,
    state: ServerState,
    evaluations: Evaluations,
    record: Record,
    lines: Sequence[Line],
    origin: Origin,
) -> Mapping[str, Any]:
    """Write the adapter and, last, the summary: where there is one, the run has ended."""
    draft = folder.path / "adapter.draft"
    for old in (draft, folder.adapter):
        shutil.rmtree(old, ignore_errors=True)
    save_adapter(draft, trained_by(setup, state, record["initial"], lines, origin), folder.adapter)
    draft.rename(folder.adapter)
    evaluation, ended = evaluations.final(state, lines), evaluations.ended()
    final = lines[-1]["metrics"] or evaluation.metrics
    asked = asked_for(setup.experiment.table["task"]["metrics"], final)
    summary = {
        "experiment": setup.experiment.name,
        "base_model": resolve_name(setup.experiment.model.name),
        "seed": setup.experiment.run.seed,
        "rounds": len(lines),
        **({"stopped": ended.to_json()} if ended else {}),
        "initial": record["initial"],
        **({"solved": record["solved"]["metrics"]} if "solved" in record else {}),
        "final": final,
        **({"asked_metrics": asked} if asked else {}),
        **by_name(evaluation.per_class, setup.corpus.labels),
        **served(setup, state, evaluation),
        **setup.evaluate_prototypes(state),
        "uplink_bytes": sum(line["uplink_bytes"] for line in lines),
        "downlink_bytes": sum(line["downlink_bytes"] for line in lines),
        "seconds": round(sum(line["seconds"] for line in lines), 3),
        "simulated_seconds": lines[-1]["simulated_clock"],
        "data": data_record(setup),
        "versions": versions(),
    }
    write_atomically(folder.summary, sealed_json(summary))
    return summary


def versions() -> dict[str, str]:
    """Say with which versions a run was computed."""
    own = {"hellora": __version__, "python": platform.python_version()}
    return own | {name: version(name) for name in LIBRARIES}


def trained_by(
    setup: Setup, state: ServerState, initial: Mapping[str, float], lines: Sequence[Line], origin: Origin
) -> Trained:
    """Say what a run has come to."""
    corpus, clients = setup.corpus, tuple(setup.clients)
    of_run = (setup.experiment, setup.base, corpus.labels, state, initial, lines, clients, origin)
    return Trained(*of_run, turns=corpus.has_turns)


def data_record(setup: Setup) -> dict[str, Any]:
    """Say how many examples there were, where the server's own came from, and on what models were evaluated."""
    corpus, split = setup.corpus, setup.experiment.data.evaluate_on
    return {
        "train": setup.training_examples,
        "test": len(corpus.test),
        "classes": len(corpus.labels),
        "proxy": corpus.proxy_source,
        "public": corpus.public_source,
        "read": list(corpus.notes),
        "sha256": corpus.fingerprint,
        "evaluated_on": "the clients' held-out examples" if setup.experiment.method.personal else f"the {split} split",
    }
