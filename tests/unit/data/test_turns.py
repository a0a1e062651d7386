"""Conversations in all the ways people write them, and in the ways that no conversation is: each is read or named."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hellora.data.turns import Fault, asked, learned, turns_of, with_system


def read(cell: Any) -> list[dict[str, Any]]:
    return turns_of(cell, Counter())


def said(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text, "weight": 1} for role, text in turns]


HELLO = said(("user", "hello"), ("assistant", "hi"))


@pytest.mark.parametrize(
    "cell",
    [
        [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}],
        [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}],
        [{"from": "Human", "value": "hello"}, {"from": "chatgpt", "value": "hi"}],
        {"role": ["user", "assistant"], "content": ["hello", "hi"]},  # older parquet files
        json.dumps([{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]),  # a CSV cell
        [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}, HELLO[1]],
        [
            {"role": "user", "content": "hello", "tool_calls": None},
            {"role": "assistant", "content": "hi", "images": []},
        ],
    ],
)
def test_every_way_to_write_a_conversation_is_the_same(cell: Any) -> None:
    assert read(cell) == HELLO


def test_a_developer_is_the_system_and_weights_are_kept() -> None:
    cell = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi", "weight": "0"},  # numbers of JSON are read as texts
        {"role": "assistant", "content": "hi!", "weight": 1},
    ]
    found = read(cell)
    assert [turn["role"] for turn in found] == ["system", "user", "assistant", "assistant"]
    assert [turn["weight"] for turn in found] == [1, 1, 0, 1]
    assert not learned(found[:3])
    assert learned(found)


MALFORMED: dict[str, tuple[Any, str]] = {
    "nothing": (None, "no conversation"),
    "empty": ([], "no turn"),
    "text": ("hello", "'hello' where a list of turns belongs"),
    "number": (7, "7 where a list of turns belongs"),
    "turn is a text": (["hello"], "its turn 1 is 'hello'"),
    "no role": ([{"content": "hello"}], "its turn 1 has no role"),
    "another role": ([{"role": "narrator", "content": "x"}], "the role 'narrator'"),
    "tool": ([HELLO[0], {"role": "tool", "content": "42"}], "its turn 2 has the role 'tool'"),
    "tool calls": ([HELLO[0], {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}], "'tool_calls'"),
    "function call": ([{"role": "assistant", "function_call": {"name": "f"}}], "'function_call'"),
    "empty user": ([{"role": "user", "content": " "}, HELLO[1]], r"its turn 1 \(user\) is empty"),
    "empty assistant": ([HELLO[0], {"role": "assistant", "content": ""}], r"its turn 2 \(assistant\) is empty"),
    "no text": ([HELLO[0], {"role": "assistant"}], r"its turn 2 \(assistant\) is empty"),
    "other key": ([{"role": "user", "text": "hello"}], r"its turn 1 \(user\) is empty"),
    "number for a text": ([{"role": "user", "content": 5}], "its turn 1 is the number 5"),
    "object for a text": ([{"role": "user", "content": {"a": 1}}], "where a text belongs"),
    "image": ([{"role": "user", "content": [{"type": "image_url", "image_url": "x.png"}]}], "'image_url'"),
    "image as a text": ([{"role": "user", "content": [{"type": "image", "image": "data:…"}]}], "'image'"),
    "images beside": ([{"role": "user", "content": "x", "images": ["a.png"]}], "'images'"),
    "weight": ([{"role": "assistant", "content": "x", "weight": 0.5}], "the weight 0.5"),
    "ragged": ({"role": ["user"], "content": ["a", "b"]}, "more of one key than of another"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_conversation_of_texts_is_named(name: str) -> None:
    cell, why = MALFORMED[name]
    with pytest.raises(Fault, match=why):
        read(cell)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "from", "content", "value", "weight", "type", "text", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_whatever_a_cell_holds_it_is_read_or_named(cell: Any) -> None:
    why, found = None, []
    try:
        found = read(cell)
    except Fault as fault:
        why = str(fault)
    assert why is None or (why.startswith("it") and "\n" not in why)
    assert all(turn["role"] in ("system", "user", "assistant") and type(turn["content"]) is str for turn in found)


def test_keys_that_say_nothing_of_the_meaning_are_counted() -> None:
    ignored: Counter[str] = Counter()
    turns_of(
        [{"role": "user", "content": "x", "id": "7", "name": "ann"}, {"role": "user", "content": "y", "id": "8"}],
        ignored,
    )
    assert ignored == {"id": 2, "name": 1}


def test_a_system_prompt_stands_before_conversations_that_have_none() -> None:
    assert with_system(HELLO, "be brief") == [*said(("system", "be brief")), *HELLO]
    assert with_system(with_system(HELLO, "be brief"), "be long") == with_system(HELLO, "be brief")
    assert with_system(HELLO, "") == HELLO


def test_what_is_asked_stands_before_the_last_answer() -> None:
    assert asked(HELLO) == HELLO[:1]
    assert asked(HELLO[:1]) == HELLO[:1]
