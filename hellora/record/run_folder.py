"""One process holds the folder of one run.

experiment.toml   every setting, defaults written out       checkpoint/   the last states, to go on from
rounds.jsonl      one line per finished round               adapter/      what peft loads, with a README
answers.jsonl     what the model answers to the same prompts, where a task asks for that
summary.json      initial and final metrics, totals, whom the result serves how well; written last
costs.json        what training was counted to cost, where there are budgets in bytes or seconds
clients.json      who takes part, with budgets and, where they are known, class counts
error.log         why the run stopped, if it had to; the traceback of a strategy that raised
*-after-N*        lines, summary and adapter of the rounds from N on that do not count since a resume went back to N
tracking/         what experiment trackers write, where some are asked for
"""

import hashlib
import json
import os
import shutil
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from hellora.core.errors import InputError, RunError, full, is_full
from hellora.experiments.config import read_begun
from hellora.experiments.experiment import Experiment
from hellora.experiments.own_code import named_code
from hellora.record.answers import cut_answers
from hellora.record.atomic import write_atomically
from hellora.record.checkpoint import remove_states, saved_rounds
from hellora.record.round_line import Line
from hellora.record.sealed import check_sealed_text, sealed_text, unsealed_json

LEFT_OVER = (".draft", ".lock", ".log")  # what a run that was killed before it began can leave


@dataclass(frozen=True)
class RunFolder:
    """A run folder has the files of one run."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def rounds(self) -> Path:
        return self.path / "rounds.jsonl"

    @property
    def answers(self) -> Path:
        return self.path / "answers.jsonl"

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
        """Keep why the run stopped: the traceback of what a strategy raised, for whoever has to mend it.

        Raises:
            RunError: the disk is full, besides what the block raises.
        """
        try:
            yield
        except (OSError, SafetensorError) as error:
            if not is_full(error):
                raise
            raise RunError(f"{full(error)}, and --resume: what was saved in {self.path} is whole") from error
        except RunError as error:
            if (cause := error.__cause__) is None:
                self.error.write_text(f"{error}\n")
                raise
            self.error.write_text("".join(traceback.format_exception(cause)))
            raise RunError(f"{error}: mend it and --resume (traceback: {self.error})") from cause

    @contextmanager
    def claim(self, experiment: Experiment, resume: bool) -> Iterator[Experiment | None]:
        """Hold this folder for `experiment`, alone; yield the experiment as it was begun there, or None.

        Raises:
            InputError: the folder holds something else, or a run that was not asked to be resumed or that still runs.
        """
        begun = None
        if self.experiment.is_file():
            self.check_experiment()
            begun = self.begun(experiment)
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
        try:
            yield begun
        except InputError:
            if begun is None and not self.checkpoint.exists():
                self.clear()
            raise
        finally:
            lock.release()

    def begun(self, experiment: Experiment) -> Experiment:
        """Read the experiment that began here. Raise InputError where it is not `experiment`; the message has the
        settings that differ.
        """
        other = "it is another experiment than is to run: choose another --out"
        begun = read_begun(self.experiment, named_code(experiment.table), other)
        if differing := begun.differences(experiment):
            names = ", ".join(differing[:3]) + (f" and {len(differing) - 3} more" if len(differing) > 3 else "")
            raise InputError(
                f"{self.path} holds a run of another experiment, with another {names}: choose another --out"
            )
        return begun

    def clear(self) -> None:
        """Remove the folder of a run that was refused, unless somebody else's file is in it."""
        for file in (self.experiment, self.rounds, self.answers, self.clients, self.costs, self.path / "run.lock"):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.path / "tracking", ignore_errors=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def check_experiment(self) -> None:
        """Raise InputError where experiment.toml is not as a run wrote it."""
        try:
            check_sealed_text(self.experiment.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.experiment} is damaged ({error}): put it back as it was, or choose another --out"
            ) from error

    def read_summary(self) -> Mapping[str, Any]:
        try:
            summary: dict[str, Any] = json.loads(self.summary.read_bytes())
            return unsealed_json(self.summary.read_bytes()) if "seal" in summary else summary
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.summary} is damaged: remove it, and --resume writes it again") from error

    def read_lines(self, count: int, digest: str | None = None) -> list[Line]:
        """Read the first `count` lines; what was written after the checkpoint will be run again. `digest` is what their
        sha256 has to be."""
        lines = self.rounds.read_bytes().splitlines(keepends=True)[:count] if self.rounds.exists() else []
        try:
            if len(lines) < count:
                raise ValueError(f"it has {len(lines)} lines, but the checkpoint is after {count} rounds")
            if digest is not None and hashlib.sha256(b"".join(lines)).hexdigest() != digest:
                raise ValueError(f"the sha256 of its first {count} lines differs")
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise InputError(f"{self.rounds} is damaged ({error})") from error

    def begin(self, experiment: Experiment, lines: Sequence[Line], back: bool = False) -> None:
        """Write the experiment, and of rounds.jsonl the lines that count; an old error counts no more.

        Where the run goes `back`, what came after these lines is set aside, and later states are removed; so are older
        ones than the experiment wants to keep, and what a kill left of a write.
        """
        try:
            if back:
                self.set_aside(len(lines))
            remove_states(self.checkpoint, besides=saved_rounds(self.checkpoint)[-experiment.run.keep :])
            self.error.unlink(missing_ok=True)
            write_atomically(self.experiment, sealed_text(experiment.to_toml()))
            write_atomically(self.rounds, b"".join(map(encoded, lines)))
            cut_answers(self.answers, len(lines))
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {error.strerror}") from error

    def set_aside(self, round: int) -> None:
        """Put what came after `round` rounds under other names, lines first, and remove the states of later rounds."""
        if later := b"".join(self.rounds.read_bytes().splitlines(keepends=True)[round:]):
            aside = self.free_name(self.rounds, round, later)
            write_atomically(aside, later)
        if later := cut_answers(self.answers, round):
            write_atomically(self.free_name(self.answers, round, later), later)
        for result in (self.summary, self.adapter):
            if result.exists():
                result.rename(self.free_name(result, round))
        remove_states(self.checkpoint, besides=range(round + 1))

    def free_name(self, file: Path, round: int, data: bytes | None = None) -> Path:
        """Return NAME-after-ROUND, numbered where there is one already that does not have the same data."""
        number = 1
        while True:
            tail = f"-{number}" if number > 1 else ""
            name = file.with_name(f"{file.stem}-after-{round}{tail}{file.suffix}")
            if not name.exists() or (data is not None and name.read_bytes() == data):
                return name
            number += 1

    def append(self, line: Line) -> None:
        with self.rounds.open("ab") as file:
            file.write(encoded(line))
            file.flush()
            os.fsync(file.fileno())


def encoded(line: Line) -> bytes:
    """Return a line as rounds.jsonl has it."""
    return json.dumps(line).encode() + b"\n"
