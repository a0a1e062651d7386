"""Begin a run, or go on with one, from Python."""

import copy
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from hellora.core.errors import InputError
from hellora.experiments.experiment import Experiment
from hellora.experiments.own_code import named_code
from hellora.interactive.given import Given, check_same, given_experiment
from hellora.interactive.notebook import NotebookProgress
from hellora.interactive.run import Run
from hellora.runs.progress import TerminalProgress
from hellora.runs.run import run_rounds
from hellora.runs.terminal import default_folder, plain_console

Line = dict[str, Any]  # of rounds.jsonl
OnRound = Callable[[Line], Any]


class Start:
    """What a run begins with: its checked experiment, the objects in it, its folder."""

    def __init__(
        self,
        source: str | Path | Experiment,
        settings: Sequence[Mapping[str, Any]],  # the last of which count
        out: str | Path | None,
        resume: bool,
        *,
        allow: Collection[str] = (),
        model: Any = None,
        tokenizer: Any = None,
        from_round: int | None = None,
    ) -> None:
        self.experiment, self.given = given_experiment(source, settings, allow, model, tokenizer)
        self.folder = default_folder(self.experiment.name, resume) if out is None else Path(out)
        self.resume, self.from_round = resume, from_round
        check_same(self.experiment, self.folder)

    def rounds(self) -> Generator[Line, None, None]:
        """Run, and yield a copy of each round's line once it is safe on disk."""
        console = plain_console()
        showing: NotebookProgress | TerminalProgress
        showing = NotebookProgress() if console.is_jupyter else TerminalProgress(console)
        with (
            showing as progress,
            closing(
                run_rounds(self.experiment, self.folder, progress, self.resume, from_round=self.from_round)
            ) as lines,
        ):
            for line in lines:
                yield copy.deepcopy(line)

    def run(self, on_round: OnRound | Iterable[OnRound]) -> Run:
        """Run to the end, and tell everybody of each round. What one of them raises ends the run, as Ctrl-C does."""
        everybody = [on_round] if callable(on_round) else list(on_round)
        if not all(map(callable, everybody)):
            raise InputError("on_round must be a function, or several, that take the record of a round")
        with closing(self.rounds()) as rounds:
            for line in rounds:
                for tell in everybody:
                    tell(line)
        return Run(self.folder, self.given, named_code(self.experiment.table))


def load_run(folder: str | Path, model: Any, tokenizer: Any, allow: Collection[str]) -> Run:
    """Return the run in a folder, with the model that it was given, where it was."""
    return Run(folder, Given.of(model, tokenizer, {}), allow)
