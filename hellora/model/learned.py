"""Encode what a language model learns from, in each of its forms: token ids, and which of them are learned.

    conversations   the chat template's text; the assistant's turns are learned (`chat.py`)
    pairs           prompt, response and end of text; the response and the end are learned
    texts           the text and an end of text; all of it is learned

What is too long is cut: a conversation and a text at their end; of a pair, the response keeps up to half of the limit,
and the prompt loses its beginning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hellora.core.errors import InputError
from hellora.model import chat
from hellora.model.normalise import embedding_rows
from hellora.model.resident import BaseModel
from hellora.model.texts import encoded_texts, named

IGNORED = -100  # label of a token that is not supervised


@dataclass(frozen=True)
class Learned:
    """An example is token ids with their labels: a token's own id where it is learned, else IGNORED."""

    input_ids: list[int]
    labels: list[int]
    cut: bool  # it was longer
    refused: str = ""  # the row and why the chat template does not take it; there is nothing of it then

    @property
    def supervised(self) -> int:
        """Count the tokens that something predicts: nothing predicts a first token."""
        return sum(label != IGNORED for label in self.labels[1:])


def learned_tokens(base: BaseModel, rows: Any, limit: int, everything: bool = False) -> list[Learned]:
    """Encode rows, a `datasets.Dataset` with `messages`, with `prompt` and `response`, or with `text`.

    Args:
        limit: tokens of an example at most
        everything: prompts and the turns of others are learned, too

    Raises:
        InputError: a row cannot be encoded, or nothing of it can be learned though it is not too long; it is named.
    """
    column = column_of(rows)
    if column == "messages":
        examples = of_conversations(base, rows, limit, everything)
    else:
        examples = of_pairs(base, rows, limit, everything) if column == "prompt" else of_texts(base, rows, limit)
    for row, example in enumerate(examples):
        if not (example.supervised or example.cut or example.refused):
            raise InputError(
                f"data.{'response' if column == 'prompt' else column}: "
                f"{named(rows, row, 'response' if column == 'prompt' else column)} has no token to learn from: leave "
                f"the row out"
            )
    return examples


def column_of(rows: Any) -> str:
    """Name the column that says in which form rows are."""
    return next(name for name in ("messages", "prompt", "text") if name in rows.column_names)


def of_conversations(base: BaseModel, rows: Any, limit: int, everything: bool) -> list[Learned]:
    check_template(base)
    found = []
    for row, each in enumerate(chat.rendered(base.processor, rows["messages"][:], everything)):
        if isinstance(each, chat.Refusal):
            found.append(Learned([0], [IGNORED], cut=False, refused=f"{named(rows, row, 'messages')} ({each})"))
            continue
        check_known(base, rows, row, each.ids)
        labels = [token if own else IGNORED for token, own in zip(each.ids, each.supervised, strict=True)]
        found.append(Learned(each.ids[:limit], labels[:limit], len(each.ids) > limit))
    return found


def of_pairs(base: BaseModel, rows: Any, limit: int, everything: bool) -> list[Learned]:
    tokenizer, end = base.processor, end_of(base.processor)
    prompts = without_end(tokenizer, encoded_texts(base, rows, ("prompt",))["input_ids"])
    responses = encoded_texts(base, rows, ("response",), add_special_tokens=False)["input_ids"]
    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        answer = (response + end)[: max(limit // 2, limit - len(prompt))]
        question = shortened(tokenizer, prompt, limit - len(answer))
        ids = question + answer
        labels = ids if everything else [IGNORED] * len(question) + answer
        found.append(Learned(ids, labels, len(ids) < len(prompt) + len(response) + len(end)))
    return found


def of_texts(base: BaseModel, rows: Any, limit: int) -> list[Learned]:
    end = end_of(base.processor)
    found = []
    for ids in without_end(base.processor, encoded_texts(base, rows, ("text",))["input_ids"]):
        whole = ids + end
        found.append(Learned(whole[:limit], whole[:limit], len(whole) > limit))
    return found


def preferred_tokens(base: BaseModel, rows: Any, limit: int) -> list[tuple[Learned, Learned]]:
    """Encode the chosen and the rejected answer of each row, a `datasets.Dataset` with these columns: as lists of turns
    or, with a `prompt`, as texts. Both answers to a text have as much of it before them.

    Raises:
        InputError: a row cannot be encoded; it is named.
    """
    if "prompt" in rows.column_names:
        return pairs_of_texts(base, rows, limit)
    sides = []
    for side in ("chosen", "rejected"):
        turns = rows.select_columns([side]).rename_column(side, "messages")
        sides.append(of_conversations(base, turns, limit, everything=False))
    return list(zip(*sides, strict=True))


def pairs_of_texts(base: BaseModel, rows: Any, limit: int) -> list[tuple[Learned, Learned]]:
    """Encode prompts with two answers each. Of what is too long, an answer keeps up to half of the limit, and the
    prompt loses its beginning."""
    tokenizer, end = base.processor, end_of(base.processor)
    prompts = without_end(tokenizer, encoded_texts(base, rows, ("prompt",))["input_ids"])
    sides = ("chosen", "rejected")
    both = [encoded_texts(base, rows, (side,), add_special_tokens=False)["input_ids"] for side in sides]
    found = []
    for prompt, *answers in zip(prompts, *both, strict=True):
        whole = [answer + end for answer in answers]
        kept = [answer[: max(limit // 2, limit - len(prompt))] for answer in whole]
        question = shortened(tokenizer, prompt, limit - max(map(len, kept)))
        cut = len(question) < len(prompt) or kept != whole
        one, other = (Learned(question + own, [IGNORED] * len(question) + own, cut) for own in kept)
        found.append((one, other))
    return found


def asked_tokens(base: BaseModel, rows: Any, room: int) -> list[list[int]]:
    """Encode what comes before the answer of each row, in at most `room` tokens: a text loses its beginning, and of a
    conversation the longest turn its end, so that the template stays whole.

    Raises:
        InputError: the tokenizer finds no token in a row, or the template refuses it.
    """
    column, tokenizer = column_of(rows), base.processor
    asked: Sequence[list[int] | chat.Refusal]
    if column == "messages":
        check_template(base)
        asked = [asked_within(tokenizer, turns_asked(turns), room) for turns in rows["messages"][:]]
    else:
        asked = without_end(tokenizer, encoded_texts(base, rows, (column,))["input_ids"])
    found = []
    for row, ids in enumerate(asked):
        if isinstance(ids, chat.Refusal):
            raise refused(rows, row, ids)
        if not ids:
            raise InputError(
                f"data.{column}: the model's tokenizer finds no token in {named(rows, row, column)}: leave the row out"
            )
        found.append(shortened(tokenizer, ids, room))
    return found


def asked_within(tokenizer: Any, turns: Sequence[Any], room: int) -> list[int] | chat.Refusal:
    """Encode a conversation up to where the assistant answers, in at most `room` tokens, if cutting its longest turn
    again and again can do that."""
    (ids,) = chat.asking(tokenizer, [turns])
    while not isinstance(ids, chat.Refusal) and len(ids) > room:
        longest = max(range(len(turns)), key=lambda place: len(turns[place]["content"]))
        text = turns[longest]["content"]
        kept = min(len(text) - 1, int(len(text) * room / len(ids)))
        if kept < 1:
            break
        turns = [*turns[:longest], {**turns[longest], "content": text[:kept]}, *turns[longest + 1 :]]
        (ids,) = chat.asking(tokenizer, [turns])
    return ids


def turns_asked(turns: Sequence[Any]) -> Sequence[Any]:
    """Return the turns before the last answer."""
    return turns[:-1] if turns[-1]["role"] == "assistant" else turns


# ------------------------------------------------------------------------------------------------------------ refusals


def check_template(base: BaseModel) -> None:
    """Raise InputError where the model's tokenizer has no chat template."""
    if not chat.template_of(base.processor):
        raise InputError(chat.NO_TEMPLATE.format(getattr(base.processor, "name_or_path", "") or "the model"))


def check_known(base: BaseModel, rows: Any, row: int, ids: Sequence[int]) -> None:
    """Raise InputError where the model has no vector for a token of a row."""
    known = embedding_rows(base.net)
    if known is not None and ids and max(ids) >= known:
        raise InputError(
            f"model.name: the tokenizer makes token {max(ids)} of {named(rows, row, 'messages')}, and the model has "
            f"vectors for {known} tokens only: they do not belong together: name a model with its own tokenizer"
        )


def refused(rows: Any, row: int, why: chat.Refusal) -> InputError:
    """Make the error of a conversation that a template does not take."""
    return InputError(
        f"data.messages: the chat template does not take {named(rows, row, 'messages')} ({why}): mend the row, or name "
        f"another template (task.chat_template)"
    )


# -------------------------------------------------------------------------------------------------------------- tokens


def end_of(tokenizer: Any) -> list[int]:
    """Return the end of text, [] where a tokenizer has none."""
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def without_end(tokenizer: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Drop the end of text that a tokenizer adds to each prompt, for the answer follows."""
    return [ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids for ids in prompts]


def shortened(tokenizer: Any, prompt: list[int], count: int) -> list[int]:
    """Return the last `count` tokens of a prompt; its beginning-of-text token stays in front."""
    if len(prompt) <= count:
        return prompt
    first = prompt[:1] if prompt[0] == tokenizer.bos_token_id else []
    return first + prompt[len(prompt) - count + len(first) :]
