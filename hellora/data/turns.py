"""Read conversations as people have them (OpenAI's messages, ShareGPT's turns, TRL's prompts and completions).

A turn is {"role", "content", "weight"} whatever it was called: the roles are system, user and assistant, and an
assistant's turn of weight 0 is not learned. What cannot be read as turns of text is said, never guessed.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Turn = dict[str, Any]

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "bard", "bing", "claude"), "assistant"),
}
ROLE_KEYS, TEXT_KEYS = ("role", "from"), ("content", "value")
# What a turn says besides its text, and cannot be left out of it without another meaning.
NO_TEXT = ("tool_calls", "tool_call_id", "function_call", "tools", "functions", "images", "image", "audio", "video")
SHOWN = 40  # characters of a cell in a message


class Fault(ValueError):
    """A conversation cannot be used; the text says why, as a clause about its row ("its turn 2 is empty")."""


def turns_of(cell: Any, ignored: Counter[str]) -> list[Turn]:
    """Read one conversation: a list of turns, the same in JSON's words, or one list for each key.

    `ignored` counts the keys of turns that are not read, for a note.

    Raises:
        Fault: it is no conversation, or has something in it that is no turn of text.
    """
    listed = as_list(cell)
    turns = [turn_of(each, place, ignored) for place, each in enumerate(listed, start=1)]
    if not turns:
        raise Fault("it has no turn")
    return turns


def as_list(cell: Any) -> Sequence[Any]:
    """Return what should be turns: CSV has them as JSON, and older parquet files as one list for each key."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError as error:
            raise Fault(f"it has the text {shown(cell)} where a list of turns belongs") from error
    if isinstance(cell, Mapping) and all(isinstance(value, list) for value in cell.values()):
        columns = {key: value for key, value in cell.items() if value}
        if len({len(value) for value in columns.values()}) > 1:
            raise Fault("its turns have more of one key than of another")
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if cell is None:
        raise Fault("it has no conversation")
    if not isinstance(cell, list):
        raise Fault(f"it has {shown(cell)} where a list of turns belongs")
    return cell


def is_empty(value: Any) -> bool:
    """Say whether a cell says nothing, also where it is JSON."""
    return value in (None, "", [], {}) or (isinstance(value, str) and value.strip() in ("[]", "{}", "null"))


def turn_of(each: Any, place: int, ignored: Counter[str]) -> Turn:
    """Read one turn, the `place`-th of its conversation."""
    if not isinstance(each, Mapping):
        raise Fault(f"its turn {place} is {shown(each)}, and no object with a role and a text")
    said = {key: value for key, value in each.items() if not is_empty(value)}
    if meant := next((key for key in NO_TEXT if key in said), None):
        raise Fault(f"its turn {place} has {meant!r}, and only turns of text are learned")
    written = next((said[key] for key in ROLE_KEYS if key in said), None)
    if written is None:
        raise Fault(f"its turn {place} has no role ({' or '.join(map(repr, ROLE_KEYS))})")
    role = ROLES.get(str(written).strip().lower())
    if role is None:
        raise Fault(f"its turn {place} has the role {shown(written)}, which is none of system, user and assistant")
    text = text_of(next((said[key] for key in TEXT_KEYS if key in said), None), place)
    if not text.strip() and role != "system":
        raise Fault(f"its turn {place} ({role}) is empty")
    ignored.update(key for key in said if key not in (*ROLE_KEYS, *TEXT_KEYS, "weight"))
    return {"role": role, "content": text, "weight": weight_of(each.get("weight"), place)}


def text_of(content: Any, place: int) -> str:
    """Return the text of a turn, which OpenAI also writes as a list of parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, bool | int | float):
        raise Fault(f"its turn {place} is the number {content!r}, not a text")
    if not isinstance(content, list):
        raise Fault(f"its turn {place} has {shown(content)} where a text belongs")
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            what = f"a part of the type {kind!r}" if kind not in (None, "text") else shown(part)
            raise Fault(f"its turn {place} has {what}, and only turns of text are learned")
        texts.append(part["text"])
    return "".join(texts)


def weight_of(weight: Any, place: int) -> int:
    """Return 0 for a turn that is not to be learned, as OpenAI's files say it, else 1."""
    if weight is None or str(weight) in ("1", "1.0", "true", "True"):
        return 1
    if str(weight) in ("0", "0.0", "false", "False"):
        return 0
    raise Fault(f"its turn {place} has the weight {shown(weight)}, which is neither 0 nor 1")


def as_turns(prompt: str, response: str) -> list[Turn]:
    """Make a conversation of a prompt and its response; of a prompt alone where that is empty."""
    turns = [{"role": "user", "content": prompt, "weight": 1}]
    return turns + ([{"role": "assistant", "content": response, "weight": 1}] if response else [])


def learned(turns: Sequence[Turn]) -> bool:
    """Say whether a conversation has a turn to learn from."""
    return any(turn["role"] == "assistant" and turn["weight"] for turn in turns)


def with_system(turns: Sequence[Turn], system: str) -> list[Turn]:
    """Put a system prompt before a conversation that has none, or an empty one; "" puts nothing."""
    first = turns[0]["role"] == "system"
    if not system or (first and turns[0]["content"].strip()):
        return list(turns)
    return [{"role": "system", "content": system, "weight": 1}, *turns[first:]]


def asked(turns: Sequence[Turn]) -> list[Turn]:
    """Return the turns that come before the last answer: what a model is asked."""
    last = len(turns) - 1 if turns[-1]["role"] == "assistant" else len(turns)
    return list(turns[:last])


def shown(value: Any) -> str:
    """Write a value for a message."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
