"""Pairs of answers, in the ways that people have them: what is asked, what is preferred, and what cannot be used."""

import json
from pathlib import Path
from typing import Any

import pytest

from hellora.core.errors import InputError
from hellora.data.preferences import shared_text
from hellora.data.settings import DataSettings
from hellora.data.sources import Corpus, load_corpus

ASKED = {"role": "user", "content": "hello"}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def corpus(folder: Path, *rows: dict[str, Any], **settings: Any) -> Corpus:
    """Twenty rows, each like one of `rows` in turn."""
    lines = "".join(json.dumps(rows[i % len(rows)]) + "\n" for i in range(20))
    (folder / "train.jsonl").write_text(lines)
    return load_corpus(DataSettings(name=str(folder / "train.jsonl"), **settings), "preference", seed=0)


def spoken(turns: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    return [(turn["role"], turn["content"], turn["weight"]) for turn in turns]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "say: ", "chosen": "yes please", "rejected": "no"},
        {"chosen": "say: yes please", "rejected": "say: no"},  # what both begin with is asked
    ],
)
def test_texts_are_asked_and_answered(tmp_path: Path, row: dict[str, Any]) -> None:
    found = corpus(tmp_path, row)
    assert found.train[0] == {"prompt": "say: ", "chosen": "yes please", "rejected": "no"}
    assert any(note.endswith("holds pairs of answers ('chosen', 'rejected')") for note in found.notes)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ASKED], "chosen": [answer("yes")], "rejected": [answer("no")]},
        {"chosen": [ASKED, answer("yes")], "rejected": [ASKED, answer("no")]},
        {"prompt": "hello", "chosen": [ASKED, answer("yes")], "rejected": [ASKED, answer("no")]},
        {"prompt": "hello", "chosen": [answer("yes")], "rejected": [answer("no")]},
        {"prompt": [ASKED], "chosen": [ASKED, answer("yes")], "rejected": [ASKED, answer("no")]},
    ],
)
def test_conversations_are_whole_and_only_answers_have_weight(tmp_path: Path, row: dict[str, Any]) -> None:
    found = corpus(tmp_path, row, system="be brief")
    before = [("system", "be brief", 0), ("user", "hello", 0)]
    assert spoken(found.train[0]["chosen"]) == [*before, ("assistant", "yes", 1)]
    assert spoken(found.train[0]["rejected"]) == [*before, ("assistant", "no", 1)]
    assert found.has_turns


def test_what_was_answered_before_the_last_question_is_not_compared(tmp_path: Path) -> None:
    talk = [ASKED, answer("hi"), {"role": "user", "content": "tea?"}]
    found = corpus(tmp_path, {"chosen": [*talk, answer("yes")], "rejected": [*talk, answer("no")]})
    assert [weight for *_, weight in spoken(found.train[0]["chosen"])] == [0, 0, 0, 1]


def test_texts_become_turns_where_that_is_asked_for(tmp_path: Path) -> None:
    found = corpus(tmp_path, {"prompt": "hello", "chosen": "yes", "rejected": "no"}, as_chat=True)
    assert spoken(found.train[0]["chosen"]) == [("user", "hello", 0), ("assistant", "yes", 1)]


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    row = {"q": "tea?", "good": "yes", "bad": "no"}
    found = corpus(tmp_path, row, prompt="{q} ", chosen="good", rejected="bad")
    assert found.train[0] == {"prompt": "tea? ", "chosen": "yes", "rejected": "no"}
    with pytest.raises(InputError, match="has no column 'chosen'"):
        corpus(tmp_path, row)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "x", "chosen": "yes", "rejected": "yes"}, "the same"),
        ({"prompt": "x", "chosen": "yes", "rejected": " "}, "its rejected is empty"),
        ({"chosen": [ASKED, answer("yes")], "rejected": [ASKED, answer("yes")]}, "the same"),
        ({"chosen": [answer("yes")], "rejected": [answer("no")]}, "nothing is asked"),
        ({"chosen": [ASKED, answer("yes")], "rejected": [ASKED]}, "does not end with an answer"),
        ({"chosen": [ASKED, answer("yes")], "rejected": [ASKED, {"role": "tool", "content": "1"}]}, "the role 'tool'"),
    ],
)
def test_pairs_that_compare_nothing_are_named(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=f"line 1: .*{why}"):
        corpus(tmp_path, row, strict=True)


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [("say: yes", "say: no", "say: "), ("say: yes", "say: yet", "say: "), ("yes", "no", ""), ("a b", "a b c", "a ")],
)
def test_what_two_texts_share_ends_with_a_space(one: str, other: str, shared: str) -> None:
    assert shared_text(one, other) == shared
