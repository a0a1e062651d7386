"""answers.jsonl: one line for each answer, and none twice, whenever a run was killed or went back."""

import json
from pathlib import Path
from typing import Any

import pytest

from hellora.record.answers import cut_answers, read_answers, write_answers


def answer(row: int, text: str = "ä “x”") -> dict[str, Any]:
    return {"row": row, "prompt": f"p{row}", "reference": "r", "answer": text}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Before training and after the rounds 0 and 2, two answers each."""
    path = tmp_path / "answers.jsonl"
    for round in (None, 0, 2):
        write_answers(path, round, [answer(0), answer(1)])
    return path


def test_a_line_for_each_answer(file: Path) -> None:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [(line["round"], line["row"]) for line in lines] == [(r, row) for r in (None, 0, 2) for row in (0, 1)]
    assert lines[0] == {"round": None, **answer(0)}
    assert read_answers(file) == lines
    assert "“x”" in file.read_text(encoding="utf-8"), "a person reads it, too"


def test_a_run_that_begins_again_begins_a_new_file(file: Path) -> None:
    assert write_answers(file, None, [answer(0)]) == read_answers(file) == [{"round": None, **answer(0)}]


def test_no_answers_make_no_file(tmp_path: Path) -> None:
    assert write_answers(tmp_path / "answers.jsonl", 0, []) == []
    assert not (tmp_path / "answers.jsonl").exists()
    assert read_answers(tmp_path / "answers.jsonl") == []
    assert cut_answers(tmp_path / "answers.jsonl", 0) == b""
    assert not (tmp_path / "answers.jsonl").exists()


@pytest.mark.parametrize(("rounds", "kept"), [(0, 2), (1, 4), (2, 4), (3, 6)])
def test_what_does_not_count_is_cut_off(rounds: int, kept: int, file: Path) -> None:
    before = file.read_bytes()
    later = cut_answers(file, rounds)
    assert file.read_bytes() + later == before
    assert len(read_answers(file)) == kept


def test_a_line_that_a_kill_left_is_none(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    assert len(read_answers(file)) == 5
    cut_answers(file, 3)
    assert file.read_bytes().count(b"\n") == 5
