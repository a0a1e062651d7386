"""Floor 5: run an experiment in its folder: a line and a checkpoint per round, resume after any kill, the adapter.

experiment.toml   every setting, defaults written out       checkpoint/   the state to go on from
rounds.jsonl      one line per finished round               adapter/      what peft loads, with a README
summary.json      initial and final metrics, totals, whom the result serves how well; written last
costs.json        what training was counted to cost, where there are budgets in bytes or seconds
clients.json      who takes part, with budgets and, where they are known, class counts
error.log         the traceback of a strategy that stopped the run
tracking/         what experiment trackers write, where some are asked for
"""

import json
import math
import os
import platform
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

import hellora
from hellora.adapter_folder import save_adapter
from hellora.atomic import write_atomically
from hellora.checkpoint import load_state, save_state
from hellora.client import Evaluation
from hellora.config import Experiment, read_experiment
from hellora.diagnostics import energy, idle_rounds
from hellora.errors import HelloraError, InputError, RunError
from hellora.experiment import Setup, prepare, threads
from hellora.fleet_record import fleet_record
from hellora.groups import served
from hellora.model import resolve_name
from hellora.protocols import Backend
from hellora.rounds import federate, select
from hellora.tracking import check_trackers, tracking
from hellora.trained import Trained
from hellora.types import (
    AdapterSpec,
    Attempt,
    ClientFailure,
    ClientProfile,
    ClientTask,
    ClientUpdate,
    RoundReport,
    ServerState,
)

Line = dict[str, Any]  # of rounds.jsonl
LEFT_OVER = (".draft", ".lock", ".log")  # what a run that was killed before it began can leave
LIBRARIES = ("torch", "transformers", "peft", "datasets", "numpy")


class Progress(Protocol):
    """What wants to know how a run goes; every method may do nothing."""

    def loading(self, experiment: Experiment, folder: Path) -> None: ...
    def started(self, setup: Setup, initial: Mapping[str, float], first_round: int) -> None: ...
    def round_started(self, clients: int) -> None: ...
    def client_answered(self, answer: ClientUpdate | ClientFailure) -> None: ...
    def round_finished(self, line: Line) -> None: ...


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def rounds(self) -> Path:
        return self.path / "rounds.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def experiment(self) -> Path:
        return self.path / "experiment.toml"

    @property
    def costs(self) -> Path:
        return self.path / "costs.json"

    @property
    def clients(self) -> Path:
        return self.path / "clients.json"

    @property
    def error(self) -> Path:
        return self.path / "error.log"

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Keep the traceback of what was raised behind a RunError, for whoever has to mend it."""
        try:
            yield
        except RunError as error:
            if (cause := error.__cause__) is None:
                raise
            self.error.write_text("".join(traceback.format_exception(cause)))
            raise RunError(f"{error}: mend it and --resume (traceback: {self.error})") from cause

    @contextmanager
    def claim(self, experiment: Experiment, resume: bool) -> Iterator[Experiment | None]:
        """Hold this folder for `experiment`, alone; the experiment as it was begun there, or None.

        Raises:
            InputError: the folder holds something else, or a run that was not asked to be resumed or that still runs.
        """
        begun = None
        if self.experiment.is_file():
            begun = read_experiment(str(self.experiment), simulated=False)  # it was checked when it began
            if not begun.same_run(experiment):
                raise InputError(f"{self.path} holds a run of another experiment: choose another --out")
            if not resume:
                raise InputError(f"{self.path} holds a run already: go on with --resume, or choose another --out")
        elif self.path.exists() and not (
            self.path.is_dir() and all(f.suffix in LEFT_OVER for f in self.path.iterdir())
        ):
            raise InputError(f"{self.path} exists and is not a run of hellora: choose another --out")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / "run.lock")
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"{self.path} is in use by another process: wait for it or choose another --out"
            ) from error
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {error.strerror}") from error
        refused = False
        try:
            yield begun
        except InputError:
            refused = begun is None
            raise
        finally:
            if refused and not self.checkpoint.exists():
                self.remove()
            lock.release()

    def remove(self) -> None:
        """A run that was refused leaves no folder behind, unless somebody else's file is in it."""
        for file in (self.experiment, self.rounds, self.clients, self.costs, self.path / "run.lock"):
            file.unlink(missing_ok=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def read_summary(self) -> Mapping[str, Any]:
        try:
            summary: Mapping[str, Any] = json.loads(self.summary.read_bytes())
            return summary
        except ValueError as error:
            raise InputError(f"{self.summary} is damaged: remove it, and --resume writes it again") from error

    def read_lines(self, count: int) -> list[Line]:
        """The first `count` lines; what was written after the checkpoint will be run again."""
        lines = self.rounds.read_bytes().splitlines()[:count] if self.rounds.exists() else []
        try:
            if len(lines) < count:
                raise ValueError(f"it has {len(lines)} lines, but the checkpoint is after {count} rounds")
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise InputError(f"{self.rounds} is damaged ({error}): remove {self.path} to start again") from error

    def begin(self, experiment: Experiment, lines: Sequence[Line]) -> None:
        """Write the experiment, and of rounds.jsonl the lines that count; an old error counts no more."""
        try:
            self.error.unlink(missing_ok=True)
            write_atomically(self.experiment, experiment.to_toml().encode())
            write_atomically(self.rounds, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {error.strerror}") from error

    def append(self, line: Line) -> None:
        with self.rounds.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


class ReportingBackend(Backend):
    """A backend that tells `progress` of every answer that passes."""

    def __init__(self, backend: Backend, progress: Progress) -> None:
        self.backend, self.progress = backend, progress

    def clients(self) -> Sequence[ClientProfile]:
        return self.backend.clients()

    def train(self, tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFailure]:
        self.progress.round_started(len(tasks))
        for answer in self.backend.train(tasks):
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
) -> Mapping[str, Any]:
    """Run (or go on with) an experiment in the folder `out`; returns its summary.

    `preparing` says where the clients are: on this machine, unless it is given.

    Raises:
        InputError: settings, data, model or folder do not fit; nothing has been computed.
        RunError: a round got too few usable updates, or a strategy raised; everything before it is kept.
    """
    check_trackers(experiment.tracking)
    folder = RunFolder(out)
    with folder.claim(experiment, resume) as begun, folder.tracing():
        if folder.summary.exists():
            return folder.read_summary()
        same = begun.compute.threads if begun else 0  # results depend on the threads
        return run_in(
            folder,
            experiment.with_threads(experiment.compute.threads or same or threads(experiment)),
            progress,
            preparing,
        )


def run_in(folder: RunFolder, experiment: Experiment, progress: Progress, preparing: Prepare) -> Mapping[str, Any]:
    """Run, or go on with, an experiment in the folder that it claimed."""
    saved = load_state(folder.checkpoint)
    lines = folder.read_lines(saved[0].round if saved else 0)
    progress.loading(experiment, folder.path)
    setup = preparing(experiment, saved[1] if saved else {})
    folder.begin(experiment, lines)
    write_atomically(folder.clients, json.dumps(fleet_record(setup)).encode())
    if (planner := setup.federation.planner) is not None:
        write_atomically(folder.costs, json.dumps(planner.model.as_record()).encode())
    evaluation = None
    with tracking(experiment, folder.path, lines) as tracked, setup.backend() as backend:
        state, record = saved or start(setup, folder)
        progress.started(setup, record["initial"], state.round)
        clock = time.perf_counter()
        reporting = ReportingBackend(backend, progress)
        for report in federate(state, setup.federation, reporting, setup.layer_scores, setup.distil):
            state = report.state
            due = state.round % experiment.run.eval_every == 0 or state.round == experiment.run.rounds
            evaluation = setup.evaluate(state) if due else None
            now = time.perf_counter()
            metrics = evaluation.metrics if evaluation else None
            lines.append(round_line(report, setup.base.spec, metrics, now - clock, lines[-1] if lines else None))
            clock = now
            folder.append(lines[-1])
            save_state(folder.checkpoint, state, record)
            tracked.tell(lines)
            progress.round_finished(lines[-1])
    return finish(setup, folder, state, evaluation or setup.evaluate(state), record["initial"], lines)


def start(setup: Setup, folder: RunFolder) -> tuple[ServerState, dict[str, Any]]:
    """The state before round 0, evaluated and saved."""
    state = setup.initial_state()
    labels = list(setup.corpus.labels)  # so that what was trained can be used without the data
    try:
        initial = setup.evaluate(state).metrics
    except HelloraError:
        raise
    except Exception as error:  # whatever a model's code raises
        why = " ".join(str(error).split())[:300]
        raise InputError(
            f"model.name: {setup.experiment.model.name!r} cannot be evaluated on this data "
            f"({type(error).__name__}: {why}): docs/your-model.md says what works"
        ) from error
    record = {"initial": initial, "clients": setup.clients, "labels": labels}
    save_state(folder.checkpoint, state, record)
    return state, record


def round_line(
    report: RoundReport,
    spec: AdapterSpec,
    metrics: Mapping[str, float] | None,
    seconds: float,
    before: Line | None,
) -> Line:
    """One line of rounds.jsonl. `ranks` has the trained rank per client and layer, 0 is frozen; `repeated` has the
    attempts before the one that counted, whose bytes are in the sums. `layer_scores` are those of rounds that measured
    them. `simulated_clock` is the sum of `simulated_seconds` so far."""
    ranks = report.allocation.ranks.tolist()
    simulated = clock = None
    if report.simulated_seconds is not None:
        simulated = round(report.simulated_seconds, 3)
        clock = round((before["simulated_clock"] if before else 0.0) + simulated, 3)
    return {
        "round": report.round,
        **attempt_fields(report.counted),
        "ranks": {str(client): row for client, row in zip(report.counted.cohort, ranks, strict=True)},
        "policies": {str(client): policy.in_words for client, policy in report.policies.items()},
        "repeated": [attempt_fields(attempt) for attempt in report.attempts[:-1]],
        "metrics": metrics,
        "clients": {str(client): dict(values) for client, values in report.client_metrics.items()},
        "aggregation_error": None if report.aggregation_error is None else round(report.aggregation_error, 6),
        "energy": [round(share, 6) for share in energy(report.state.adapter, spec)],
        "idle_rounds": idle_rounds(
            report.allocation, report.counted.updated, before["idle_rounds"] if before else None
        ),
        "layer_scores": new_layer_scores(report),
        "uplink_bytes": report.uplink_bytes,
        "downlink_bytes": report.downlink_bytes,
        "seconds": round(seconds, 3),
        "simulated_seconds": simulated,
        "simulated_clock": clock,
    }


def new_layer_scores(report: RoundReport) -> list[float | None] | None:
    """The scores (layers,) of an allocator that measured them anew in this round; null for one that is not finite."""
    memory = select(report.state.memory, "allocator")
    if "scores" not in memory or int(memory.get("refreshed", -1)) != report.round:
        return None
    return [float(f"{score:.6g}") if math.isfinite(score) else None for score in memory["scores"].tolist()]


def attempt_fields(attempt: Attempt) -> Line:
    return {
        "cohort": list(attempt.cohort),
        "updated": list(attempt.updated),
        "missing": {str(client): why for client, why in attempt.missing.items()},
        "rejected": {str(client): why for client, why in attempt.rejected.items()},
        "dropped": {str(client): list(why) for client, why in attempt.dropped.items()},
    }


def finish(
    setup: Setup,
    folder: RunFolder,
    state: ServerState,
    evaluation: Evaluation,
    initial: Mapping[str, float],
    lines: Sequence[Line],
) -> Mapping[str, Any]:
    """Write the adapter and, last, the summary."""
    draft = folder.path / "adapter.draft"
    for old in (draft, folder.adapter):
        shutil.rmtree(old, ignore_errors=True)
    trained = Trained(setup.experiment, setup.base, setup.corpus.labels, state, initial, lines, tuple(setup.clients))
    save_adapter(draft, trained, folder.adapter)
    draft.rename(folder.adapter)
    corpus, on = setup.corpus, setup.experiment.data.evaluate_on
    summary = {
        "experiment": setup.experiment.name,
        "base_model": resolve_name(setup.experiment.model.name),
        "seed": setup.experiment.run.seed,
        "rounds": len(lines),
        "initial": initial,
        "final": lines[-1]["metrics"],
        **served(setup, state, evaluation),
        **setup.evaluate_prototypes(state),
        "uplink_bytes": sum(line["uplink_bytes"] for line in lines),
        "downlink_bytes": sum(line["downlink_bytes"] for line in lines),
        "seconds": round(sum(line["seconds"] for line in lines), 3),
        "simulated_seconds": lines[-1]["simulated_clock"],
        "data": {
            "train": setup.training_examples,
            "test": len(corpus.test),
            "classes": len(corpus.labels),
            "proxy": corpus.proxy_source,
            "public": corpus.public_source,
            "evaluated_on": "the clients' held-out examples" if setup.held_out else f"the {on} split",
        },
        "versions": {"hellora": hellora.__version__, "python": platform.python_version()}
        | {name: version(name) for name in LIBRARIES},
    }
    write_atomically(folder.summary, json.dumps(summary, indent=1).encode())
    return summary
