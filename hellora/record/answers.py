"""What a run's model answers to the same prompts is kept in answers.jsonl, a line for each answer.

round    after which it was given, null before training       prompt, reference, answer    texts
row      of the data, from 0
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hellora.record.atomic import write_atomically

AnswerLine = dict[str, Any]


def write_answers(file: Path, round: int | None, answers: Sequence[Mapping[str, Any]]) -> list[AnswerLine]:
    """Write the answers after a round below those before it; those before training are the first of the file. Return
    their lines."""
    lines: list[AnswerLine] = [{"round": round, **answer} for answer in answers]
    data = b"".join(map(encoded, lines))
    if round is None:
        write_atomically(file, data)
    elif data:
        with file.open("ab") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
    return lines


def read_answers(file: Path) -> list[AnswerLine]:
    """Read the whole lines of a file, [] where there is none; what a kill left of a line is none."""
    whole = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
    return [json.loads(line) for line in whole]


def cut_answers(file: Path, rounds: int) -> bytes:
    """Keep in the file the answers until so many rounds were finished, and return the later ones, as they stood."""
    if not file.is_file():
        return b""
    lines = read_answers(file)
    kept = [line for line in lines if line["round"] is None or line["round"] < rounds]
    later = [line for line in lines if line not in kept]
    write_atomically(file, b"".join(map(encoded, kept)))
    return b"".join(map(encoded, later))


def encoded(line: AnswerLine) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"
