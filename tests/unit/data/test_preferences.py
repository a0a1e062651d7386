"""Pairs of answers, in the ways that people have them: what is asked, what is preferred, and what cannot be used."""

import json
from pathlib import Path
from typing import Any

import pytest

from hellora.core.errors import InputError
from hellora.data.forms import prompts_of
from hellora.data.one_file import read_rows
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


def test_transcripts_become_the_turns_that_they_write(tmp_path: Path) -> None:
    """As in hh-rlhf, whose texts differ in the last answer."""
    begins = "\n\nHuman: hello\n\nAssistant: hi\n\nHuman: say\n\nAssistant:"
    found = corpus(tmp_path, {"chosen": f"{begins} yes, Human: please", "rejected": f"{begins} no"}, as_chat=True)
    before = [("user", "hello", 0), ("assistant", "hi", 0), ("user", "say", 0)]
    assert spoken(found.train[0]["chosen"]) == [*before, ("assistant", "yes, Human: please", 1)]
    assert spoken(found.train[0]["rejected"]) == [*before, ("assistant", "no", 1)]
    odd = corpus(tmp_path, {"prompt": "\n\nHuman: a\n\nHuman: b", "chosen": "yes", "rejected": "no"}, as_chat=True)
    assert spoken(odd.train[0]["chosen"]) == [("user", "\n\nHuman: a\n\nHuman: b", 0), ("assistant", "yes", 1)]


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


@pytest.mark.parametrize(
    ("prompt", "lead"),
    [
        ("", []),
        ("hello\n", []),
        ([{"role": "user", "content": "hi"}, answer("ho"), ASKED], [{"role": "user", "content": "hi"}, answer("ho")]),
        ([ASKED], [{"role": "system", "content": "be brief"}]),
    ],
)
def test_a_prompt_beside_whole_conversations_is_not_asked_twice(tmp_path: Path, prompt: Any, lead: list[Any]) -> None:
    row = {side: [*lead, ASKED, answer(side)] for side in ("chosen", "rejected")}
    turns = spoken(corpus(tmp_path, {**row, "prompt": prompt}).train[0]["chosen"])
    assert [text for _, text, _ in turns] == [*(turn["content"] for turn in lead), "hello", "chosen"]
    with pytest.raises(InputError, match="its prompt is not how its two conversations begin"):
        corpus(tmp_path, {**row, "prompt": "something else"}, strict=True)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"question": "tea?", "chosen": "yes", "rejected": "no"}, "tea?"),
        ({"instruction": "add", "input": "1, 2", "chosen": "3", "rejected": "4"}, "add\n\n1, 2"),
        ({"prompt": "say: ", "chosen": "say: yes", "rejected": "say: no"}, "say: "),
        ({"chosen": "H: tea?\n\nA:\nDrink.", "rejected": "H: tea?\n\nA:\nNo."}, "H: tea?\n\nA:\n"),
    ],
)
def test_a_question_is_read_wherever_it_stands(tmp_path: Path, row: dict[str, Any], prompt: str) -> None:
    found = corpus(tmp_path, row).train[0]
    assert found["prompt"] == prompt
    assert not found["chosen"].startswith("say")
    with pytest.raises(InputError, match="nothing is asked before its two answers"):
        corpus(tmp_path, {"chosen": "yes", "rejected": "no"}, strict=True)


def test_what_trained_a_run_can_be_asked(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({side: [ASKED, answer(side)] for side in ("chosen", "rejected")}))
    rows = read_rows(str(tmp_path / "rows.jsonl"), DataSettings(), "preference", (), labelled=False).data
    assert prompts_of(rows) == ["hello"]
