"""Find the state that a run goes on from: the last one that is whole, or an earlier one that somebody asks for."""

from dataclasses import dataclass
from typing import Any

from hellora.core.errors import InputError
from hellora.core.state import ServerState
from hellora.record.checkpoint import load_round, saved_rounds
from hellora.record.round_line import Line
from hellora.record.run_folder import RunFolder


@dataclass(frozen=True, eq=False)
class LastGood:
    """A run goes on from here."""

    state: ServerState
    record: dict[str, Any]  # of the run, as it was saved with the state
    lines: list[Line]  # of the rounds until then
    back: bool  # whether there is a later state, which does not count
    notes: tuple[str, ...]  # what a person has to know of it


def last_good(folder: RunFolder, from_round: int | None = None) -> LastGood | None:
    """Return what the run in `folder` goes on from; None where nothing is saved yet.

    Raises:
        InputError: no state is whole, or there is none before the round that is asked for.
    """
    saved = saved_rounds(folder.checkpoint)
    if from_round is not None and from_round not in saved:
        known = f"those before the rounds {', '.join(map(str, saved))}" if saved else "none"
        raise InputError(f"--from-round {from_round}: the states that are kept are {known} (see the setting keep)")
    problems: list[str] = []
    for round in reversed(saved):
        if from_round is not None and round != from_round:
            continue
        try:
            state, record = load_round(folder.checkpoint, round)
            lines = folder.read_lines(round, record.get("lines"))
        except InputError as error:
            problems.append(str(error))
            continue
        back = round != saved[-1]
        notes = [f"{problem}, so the state before round {round} is used" for problem in problems[-1:]]
        if back:
            notes.append(f"going back to before round {round}: what came after it is set aside, as *-after-{round}")
        return LastGood(state, record, lines, back, tuple(notes))
    if from_round is not None:
        raise InputError(f"--from-round {from_round}: {problems[0]}: choose another of {', '.join(map(str, saved))}")
    if problems:
        raise InputError(f"{problems[0]}: no other state is whole; remove {folder.path} to start the run again")
    return None
