"""The forms of language-model data: which is found by which columns, what is said of it, what is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from hellora.core.errors import InputError
from hellora.data.forms import prompts_of, references_of
from hellora.data.one_file import read_rows
from hellora.data.settings import DataSettings
from hellora.data.sources import Corpus, load_corpus

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
SHARE = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]


def corpus(folder: Path, *rows: dict[str, Any], **settings: Any) -> Corpus:
    """Twenty rows, each like one of `rows` in turn."""
    lines = "".join(json.dumps({**rows[i % len(rows)]}) + "\n" for i in range(20))
    (folder / "train.jsonl").write_text(lines)
    return load_corpus(DataSettings(name=str(folder / "train.jsonl"), **settings), "instruction", seed=0)


def weighed(*turns: tuple[str, str, int]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text, "weight": weight} for role, text, weight in turns]


HELLO = weighed(("user", "hello", 1), ("assistant", "hi", 1))


@pytest.mark.parametrize(
    ("row", "said", "expected"),
    [
        ({"messages": CHAT}, "conversations ('messages')", {"messages": HELLO}),
        (
            {"conversations": SHARE, "prompt": "no"},
            "conversations ('conversations'); not read: 'prompt'",
            {"messages": HELLO},
        ),
        (
            {"prompt": CHAT, "completion": [CHAT[1]]},
            "conversations ('prompt', of which 'completion' is learned)",
            {"messages": weighed(("user", "hello", 0), ("assistant", "hi", 0), ("assistant", "hi", 1))},
        ),
        (
            {"prompt": "say: ", "completion": "hi"},
            "prompts ('{prompt}') with responses ('{completion}')",
            {"prompt": "say: ", "response": "hi"},
        ),
        (
            {"instruction": "add", "response": "3", "context": "1, 2", "output": "4"},
            "prompts ('{instruction}', 'context' below it) with responses ('{response}'); not read: 'output'",
            {"prompt": "add\n\n1, 2", "response": "3"},
        ),
        (
            {"instruction": "add", "input": "1, 2", "output": "3"},
            "prompts ('{instruction}', 'input' below it) with responses ('{output}')",
            {"prompt": "add\n\n1, 2", "response": "3"},
        ),
        (
            {"instruction": "add", "input": "", "output": "3"},
            "prompts ('{instruction}', 'input' below it) with responses ('{output}')",
            {"prompt": "add", "response": "3"},
        ),
        (
            {"question": "1?", "answer": "2"},
            "prompts ('{question}') with responses ('{answer}')",
            {"prompt": "1?", "response": "2"},
        ),
        ({"text": "once upon a time"}, "plain texts ('text')", {"text": "once upon a time"}),
    ],
)
def test_a_form_is_found_by_the_names_of_columns_and_said(
    tmp_path: Path, row: dict[str, Any], said: str, expected: dict[str, Any]
) -> None:
    found = corpus(tmp_path, row)
    assert found.train[0] == expected
    assert any(note.endswith(f"train.jsonl holds {said}") for note in found.notes), found.notes


def test_settings_go_before_names(tmp_path: Path) -> None:
    row = {"messages": CHAT, "talk": SHARE, "text": "x", "q": "1?", "a": "2"}
    assert corpus(tmp_path, row, messages="talk").train[0] == {"messages": HELLO}
    assert corpus(tmp_path, row, prompt="{q}", response="{a}").train[0] == {"prompt": "1?", "response": "2"}
    assert corpus(tmp_path, row | {"story": "y"}, text="story").train[0] == {"text": "y"}
    with pytest.raises(ValueError, match="both say what is read"):
        DataSettings(messages="talk", prompt="{q}")


def test_pairs_become_turns_where_that_is_asked_for(tmp_path: Path) -> None:
    row = {"instruction": "hello", "response": "hi", "system": "be brief"}
    assert corpus(tmp_path, row, as_chat=True).train[0]["messages"] == [*weighed(("system", "be brief", 1)), *HELLO]
    spoken = corpus(tmp_path, row, as_chat=True, system="you are {system}").train[0]["messages"]
    assert spoken[0]["content"] == "you are be brief"


def test_a_system_prompt_goes_before_conversations_without_one(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "mine"}, *CHAT]
    found = corpus(tmp_path, {"messages": CHAT}, {"messages": own}, system="be brief").train["messages"][:]
    assert {turns[0]["content"] for turns in found} == {"be brief", "mine"}


def test_rows_that_are_no_conversation_are_left_out_and_named(tmp_path: Path) -> None:
    good = {"messages": CHAT}
    rows = [good] * 19 + [{"messages": [{"role": "tool", "content": "42"}]}]
    found = corpus(tmp_path, *rows)
    assert any("left out: 1 of the 20 rows" in note and "line 20" in note for note in found.notes)
    assert any("its turn 1 has the role 'tool'" in note for note in found.notes)
    with pytest.raises(InputError, match=r"line 20: its turn 1 has the role 'tool'"):
        corpus(tmp_path, *rows, strict=True)
    with pytest.raises(InputError, match="it has no turn of the assistant to learn"):
        corpus(tmp_path, {"messages": CHAT[:1]})
    with pytest.raises(InputError, match="it has 'tools', and only turns of text are learned"):
        corpus(tmp_path, {"messages": CHAT, "tools": [{"name": "f"}]})


def test_keys_of_turns_that_are_not_read_are_said(tmp_path: Path) -> None:
    found = corpus(tmp_path, {"messages": [{**CHAT[0], "id": "7"}, CHAT[1]]})
    assert any(note.startswith("not read: 'id' of the turns of ") for note in found.notes)


def test_data_in_no_known_form_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no conversations .* \(it has body\): set data.messages, data.prompt"):
        corpus(tmp_path, {"body": "x"})


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"messages": CHAT[:1]}, "hello"),
        ({"messages": CHAT}, "hello"),  # the answer is a reference, and is not asked
        ({"messages": [{"role": "system", "content": "be brief"}, CHAT[0]]}, "system: be brief\nuser: hello"),
        ({"prompt": "hello"}, "hello"),
        ({"instruction": "hello", "input": "you"}, "hello\n\nyou"),
        ({"text": "hello"}, "hello"),
    ],
)
def test_to_predict_needs_no_answers(tmp_path: Path, row: dict[str, Any], asked: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    rows = read_rows(str(tmp_path / "rows.jsonl"), DataSettings(), "instruction", (), labelled=False).data
    assert prompts_of(rows) == [asked]


def test_prompts_are_asked_as_turns_where_an_adapter_learned_turns(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "hello"}\n')
    rows = read_rows(str(tmp_path / "rows.jsonl"), DataSettings(as_chat=True), "instruction", (), labelled=False).data
    assert rows["messages"][:] == [HELLO[:1]]


def test_references_are_what_rows_answer(tmp_path: Path) -> None:
    assert set(references_of(corpus(tmp_path, {"messages": CHAT}).train)) == {"hi"}
    assert set(references_of(corpus(tmp_path, {"prompt": "a", "completion": "b"}).train)) == {"b"}
    assert set(references_of(corpus(tmp_path, {"text": "a"}).train)) == {""}


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"prompt": "q", "completion": "a"}, {"system": "be brief"}, "data.system is for conversations"),
        ({"text": "q"}, {"system": "be brief"}, "data.system is for conversations"),
        ({"text": "q"}, {"as_chat": True}, "data.as_chat: plain texts have no turns"),
        ({"chosen": "a", "rejected": "b"}, {}, "set task.name = 'preference'"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(
    tmp_path: Path, row: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        corpus(tmp_path, row, **settings)


def test_lists_in_the_cells_of_a_csv_are_turns(tmp_path: Path) -> None:
    cells = {"prompt": json.dumps([{"role": "user", "content": "hello"}]), "completion": json.dumps([CHAT[1]])}
    assert corpus(tmp_path, cells).train[0]["messages"][0]["content"] == "hello"


def test_parts_stand_beside_texts(tmp_path: Path) -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "hello"}]}
    assert corpus(tmp_path, {"messages": [parts, CHAT[1]], "meta": {"a": [1, {}]}}).train[0] == {"messages": HELLO}


def test_many_faults_of_one_kind_are_one_line(tmp_path: Path) -> None:
    rows = [{"messages": f"the text {i} 'quoted {i}'"} for i in range(20)]
    with pytest.raises(InputError) as refused:
        corpus(tmp_path, *rows)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("system", "said"), [('Reply as {"a": 1}', 'Reply as {"a": 1}'), ('{{"a": 1}}', '{"a": 1}'), ("{x} {", "{x} {")]
)
def test_a_system_prompt_may_have_braces(tmp_path: Path, system: str, said: str) -> None:
    assert corpus(tmp_path, {"messages": CHAT}, system=system).train[0]["messages"][0]["content"] == said


def test_a_test_split_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text((json.dumps({"messages": CHAT}) + "\n") * 9)
    (tmp_path / "test.jsonl").write_text((json.dumps({"prompt": "q", "completion": "a"}) + "\n") * 3)
    with pytest.raises(InputError, match=r"data.test_split: its examples are prompt and response, and those that are"):
        load_corpus(DataSettings(name=str(tmp_path)), "instruction", seed=0)
