"""Chat templates: token ids and learned positions against a table written by hand, format by format."""

from typing import Any

import chat_formats
import pytest
from chat_formats import FORMATS, Format

from hellora.core.errors import InputError
from hellora.model import chat
from hellora.model.chat import Refusal, Rendered

BY_NAME = {format.name: format for format in FORMATS}
ASKED = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


def rendered(tokenizer: Any, turns: Any, everything: bool = False) -> Rendered:
    (found,) = chat.rendered(tokenizer, [turns], everything)
    assert isinstance(found, Rendered), found
    return found


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_ids_and_learned_positions_are_those_of_the_table(format: Format) -> None:
    tokenizer = chat_formats.tokenizer_of(format)
    conversations = [chat_formats.conversation(format, seed) for seed in range(200)]
    for turns, found in zip(conversations, chat.rendered(tokenizer, conversations), strict=True):
        assert isinstance(found, Rendered), (turns, found)
        ids, mask = chat_formats.table(tokenizer, format, turns)
        assert found.ids == ids, turns
        assert found.supervised == mask, turns


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_an_answer_is_asked_for_by_what_stands_before_it_in_training(format: Format) -> None:
    tokenizer = chat_formats.tokenizer_of(format)
    found = rendered(tokenizer, ASKED)
    (asked,) = chat.asking(tokenizer, [ASKED[:1]])
    assert not isinstance(asked, Refusal)
    assert found.ids[: len(asked)] == asked
    assert found.supervised.index(True) == len(asked)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_the_end_of_an_answer_is_found(format: Format) -> None:
    tokenizer = chat_formats.tokenizer_of(format)
    end = "<end_of_turn>" if format.name == "gemma" else format.end
    assert chat.turn_ends(tokenizer) == [tokenizer.convert_tokens_to_ids(end)]


def test_all_is_learned_where_that_is_asked_for() -> None:
    tokenizer = chat_formats.tokenizer_of(BY_NAME["chatml"])
    found = rendered(tokenizer, ASKED, everything=True)
    assert all(found.supervised)
    assert found.ids == rendered(tokenizer, ASKED).ids


@pytest.mark.parametrize("name", ["chatml", "chatml_marked"])
def test_an_answer_of_weight_0_is_read_and_not_learned(name: str) -> None:
    tokenizer = chat_formats.tokenizer_of(BY_NAME[name])
    turns = [{**turn, "weight": 1} for turn in (*ASKED, *ASKED)]
    turns[1]["weight"] = 0
    found, whole = rendered(tokenizer, turns), rendered(tokenizer, [*ASKED, *ASKED])
    assert found.ids == whole.ids
    half = len(rendered(tokenizer, ASKED).ids)
    assert not any(found.supervised[:half])
    assert (
        tokenizer.decode([t for t, own in zip(found.ids, found.supervised, strict=True) if own]).strip()
        == "hi<|im_end|>"
    )


def test_a_template_that_rewrites_what_was_said_is_refused() -> None:
    """Reasoning models drop the thoughts of all answers but the last: then a beginning is not how the whole begins."""
    tokenizer = chat_formats.tokenizer_of(BY_NAME["chatml"])
    tokenizer.chat_template = chat_formats.CHATML.replace(
        "m.content +", "(m.content if loop.last else m.content.split('</think>')[-1]) +"
    )
    thought = {"role": "assistant", "content": "<think>so</think>yes"}
    assert any(rendered(tokenizer, [ASKED[0], thought]).supervised)
    (found,) = chat.rendered(tokenizer, [[ASKED[0], thought, *ASKED]])
    assert isinstance(found, Refusal)
    assert "differently once it goes on" in str(found)


@pytest.mark.parametrize(
    ("name", "turns", "why"),
    [
        ("gemma", [{"role": "system", "content": "be brief"}, *ASKED], "System role not supported"),
        ("mistral", [*ASKED, ASKED[1]], "roles must alternate"),
    ],
)
def test_what_a_template_refuses_is_said_in_its_words(name: str, turns: Any, why: str) -> None:
    tokenizer = chat_formats.tokenizer_of(BY_NAME[name])
    found = chat.rendered(tokenizer, [ASKED, turns, ASKED])
    assert isinstance(found[1], Refusal)
    assert why in str(found[1])
    assert found[0] == found[2], "the others are as they were"


def test_a_template_does_not_see_the_clock() -> None:
    """Else a run that is resumed tomorrow would train on other tokens."""
    tokenizer = chat_formats.tokenizer_of(BY_NAME["chatml"])
    tokenizer.chat_template = "{{- strftime_now('%d %b %Y') -}}" + chat_formats.CHATML
    assert tokenizer.decode(rendered(tokenizer, ASKED).ids).startswith("26 Jul 2024<|im_start|>")


def test_a_template_of_ones_own_takes_the_place_of_the_tokenizers() -> None:
    tokenizer = chat_formats.tokenizer_of(BY_NAME["chatml"])
    chat.settle_template(tokenizer, chat_formats.VICUNA)
    assert tokenizer.decode(rendered(tokenizer, ASKED).ids) == "USER: hello ASSISTANT: hi</s>"
    with pytest.raises(InputError, match=r"task.chat_template: it renders no conversation"):
        chat.settle_template(tokenizer, "{% for %}")


def test_the_unknown_token_is_text_too_where_somebody_writes_it() -> None:
    """In GPT-2's kin it is the token that ends texts."""
    tokenizer = chat_formats.tokenizer_of(BY_NAME["chatml"])
    tokenizer.unk_token = "<|im_end|>"
    found = rendered(tokenizer, [{"role": "user", "content": "a<|im_end|>"}, ASKED[1]])
    assert found.ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2


def test_an_answer_that_nobody_asked_for_is_read_and_not_learned() -> None:
    tokenizer = chat_formats.tokenizer_of(BY_NAME["chatml"])
    found = rendered(tokenizer, [ASKED[1], *ASKED])
    assert tokenizer.decode([t for t, own in zip(found.ids, found.supervised, strict=True) if own]) == "hi<|im_end|>\n"
