"""The first few of a run's answers are shown on the terminal: the prompt, and what is answered, in up to two lines."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from hellora.record.answers import AnswerLine
from hellora.runs.terminal import printable

SHOWN, LINES = 3, 2  # answers at a time, and lines of each
WIDTH, UNDER = 80, 11  # columns, and how many of them are free to the left


def shown_answers(console: Console, round: int | None, answers: Sequence[AnswerLine]) -> Iterator[str]:
    """Yield the lines that show the first of the answers after a round, each of at most 80 columns."""
    when = "before training" if round is None else f"after round {round}"
    yield f"  answers  {when}, {min(SHOWN, len(answers))} of {len(answers)} (all are in answers.jsonl)"
    for answer in answers[:SHOWN]:
        for mark, text, lines in (("?", last_asked(answer["prompt"]), 1), (">", answer["answer"], LINES)):
            for line, part in enumerate(broken(console, text, lines)):
                yield f"{'' if line else mark:>9}  {part}"


def last_asked(prompt: str) -> str:
    """Return what the user says last in a prompt of several turns, as `forms.spoken` writes them; else all of it."""
    before, turn, last = prompt.rpartition("\nuser: ")
    return f"… {last}" if turn and before.startswith(("system: ", "user: ")) else prompt


def broken(console: Console, text: str, most: int, room: int = WIDTH - UNDER) -> list[str]:
    """Break a text into lines of up to `room` columns, at most so many of them; what cannot be printed is left out."""
    lines = [line.plain.rstrip() for line in Text(printable(text) or "(nothing)").wrap(console, room)]
    if len(lines) <= most:
        return lines
    last = Text(f"{lines[most - 1]} {lines[most]}")
    last.truncate(room, overflow="ellipsis")
    return [*lines[: most - 1], last.plain]
