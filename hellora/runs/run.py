"""Run an experiment in its folder: a line and a checkpoint per round, resume after any kill, the adapter."""

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from hellora.client.evaluation import Evaluation
from hellora.client.per_class import by_name
from hellora.core.errors import InputError
from hellora.core.exchange import ClientFailure, ClientUpdate
from hellora.core.metrics import asked_for
from hellora.core.state import ServerState
from hellora.core.types import ClientProfile
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
from hellora.record.last_good import last_good
from hellora.record.round_line import Line, round_line
from hellora.record.run_folder import RunFolder, encoded
from hellora.record.sealed import sealed_json
from hellora.results.adapter_folder import save_adapter
from hellora.results.trained import Trained
from hellora.runs.beginning import start, with_first_waves, with_solved_head
from hellora.runs.evaluations import Evaluations
from hellora.runs.fleet_record import fleet_record
from hellora.runs.groups import served
from hellora.runs.tracking import check_trackers, tracking
from hellora.server.backend import Backend, Order
from hellora.server.rounds import federate

LIBRARIES = ("torch", "transformers", "peft", "datasets", "numpy")


class Progress(Protocol):
    """An observer wants to know how a run goes; every method may do nothing."""

    def loading(self, experiment: Experiment, folder: Path) -> None:
        """Note that data and model are about to be loaded."""

    def noted(self, note: str) -> None:
        """Note what a person has to know before the run goes on, such as a state that is damaged."""

    def started(self, setup: Setup, metrics: Mapping[str, float], first_round: int) -> None:
        """Note that they are loaded; `metrics` are those before round 0 or, of a run that is gone on with, the last."""

    def head_solved(self, metrics: Mapping[str, float]) -> None:
        """Note that the head is solved before round 0; `metrics` are those with it."""

    def round_started(self, clients: int) -> None:
        """Note that so many clients are asked to train, in a new round or a new attempt at it."""

    def client_answered(self, answer: ClientUpdate | ClientFailure) -> None:
        """Note that a client trained, or failed."""

    def answered(self, round: int | None, answers: Sequence[AnswerLine]) -> None:
        """Note what the model answers to the same prompts after a round, None before training; there are some."""

    def round_finished(self, line: Line) -> None:
        """Note that a round's line of `rounds.jsonl` is written, and its checkpoint."""


class ReportingBackend(Backend):
    """Tells `progress` of every answer that passes through a backend."""

    def __init__(self, backend: Backend, progress: Progress) -> None:
        self.backend, self.progress = backend, progress

    def clients(self) -> Sequence[ClientProfile]:
        return self.backend.clients()

    def train(self, orders: Sequence[Order]) -> Iterator[ClientUpdate | ClientFailure]:
        self.progress.round_started(len(orders))
        for answer in self.backend.train(orders):
            self.progress.client_answered(answer)
            yield answer


Record = Mapping[str, Any]  # what a checkpoint holds besides the state
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
    if from_round is not None and not resume:
        raise InputError("--from-round goes back in a run that is there: give --resume, too")
    check_trackers(experiment.tracking)
    folder = RunFolder(out)
    with folder.claim(experiment, resume) as begun, folder.tracing():
        if folder.summary.exists() and from_round is None:
            return folder.read_summary()
        same = begun.compute.threads if begun else 0  # results depend on the threads
        return run_in(
            folder,
            experiment.with_threads(experiment.compute.threads or same or threads(experiment)),
            progress,
            preparing,
            from_round,
        )


def run_in(
    folder: RunFolder, experiment: Experiment, progress: Progress, preparing: Prepare, from_round: int | None
) -> Mapping[str, Any]:
    """Run, or go on with, an experiment in the folder that it claimed."""
    found = last_good(folder, from_round)
    lines, before = (found.lines, found.record) if found else ([], {})
    progress.loading(experiment, folder.path)
    for note in found.notes if found else ():
        progress.noted(note)
    setup = preparing(experiment, before)
    check_data(setup, before)
    origin = origin_of(setup, before)
    folder.begin(experiment, lines, back=found is not None and found.back)
    record_fleet(folder, setup)
    evaluations = Evaluations(setup)
    digest = hashlib.sha256(b"".join(map(encoded, lines)))
    with tracking(experiment, folder.path, lines) as tracked, setup.backend() as backend:
        state, record = (found.state, found.record) if found else start(setup, folder, origin)
        progress.started(setup, last_metrics(lines) if lines else record["initial"], state.round)
        tell_first(progress, [] if found else read_answers(folder.answers))
        clock = time.perf_counter()
        reporting = ReportingBackend(backend, progress)
        state, record = with_solved_head(setup, folder, state, record, reporting)
        if state.round == 0 and "solved" in record:
            progress.head_solved(record["solved"]["metrics"])
        for report in federate(state, setup.federation, reporting, setup, evaluations.problem_with):
            report = with_first_waves(report, record)
            state, now = report.state, time.perf_counter()
            previous = lines[-1] if lines else None
            lines.append(round_line(report, evaluations.of(report), now - clock, previous))
            clock = now
            folder.append(lines[-1])
            answers = write_answers(folder.answers, report.round, evaluations.answers)
            digest.update(encoded(lines[-1]))
            save_state(folder.checkpoint, state, record | {"lines": digest.hexdigest()}, experiment.run.keep)
            tracked.tell(lines)
            tell_round(progress, lines[-1], answers)
    return finish(setup, folder, state, evaluations.final(state, lines), record, lines, origin)


def record_fleet(folder: RunFolder, setup: Setup) -> None:
    """Write who takes part and, where budgets ask for it, what training was counted to cost."""
    write_atomically(folder.clients, json.dumps(fleet_record(setup)).encode())
    if (planner := setup.federation.planner) is not None:
        write_atomically(folder.costs, json.dumps(planner.model.as_record()).encode())


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
    evaluation: Evaluation,
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
    final = lines[-1]["metrics"] or evaluation.metrics
    asked = asked_for(setup.experiment.table["task"]["metrics"], final)
    summary = {
        "experiment": setup.experiment.name,
        "base_model": resolve_name(setup.experiment.model.name),
        "seed": setup.experiment.run.seed,
        "rounds": len(lines),
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
        "versions": {"hellora": __version__, "python": platform.python_version()}
        | {name: version(name) for name in LIBRARIES},
    }
    write_atomically(folder.summary, sealed_json(summary))
    return summary


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
