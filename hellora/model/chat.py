"""Render conversations by a chat template, and find the tokens that the assistant says.

    supervised = the template's own generation mask, where it marks what is generated ({% generation %});
                 else, for each turn i of the assistant, the tokens of render(turns ≤ i) behind those of
                 render(turns < i, and the beginning of an answer)

The second way needs that what is rendered of a beginning is how the whole begins; a template for which that is not so
(some drop the thoughts of earlier answers) is refused, for a guess would be a silent error.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hellora.core.errors import InputError
from hellora.model.normalise import special_tokens

Turns = Sequence[Mapping[str, Any]]
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
# What a template says of today: Llama's own fallback. With the clock's, a resumed run would train on other tokens.
TODAY = (
    "{%- macro strftime_now(form) -%}{{- {'%d %b %Y': '26 Jul 2024', '%Y': '2024'}.get(form, '2024-07-26') -}}"
    "{%- endmacro -%}"
)
NO_TEMPLATE = (
    "task.chat_template: the tokenizer of {!r} has no chat template, and the data has conversations: set "
    "task.chat_template to a file with one, name a model that is made to chat, or set data.prompt and data.response"
)


class Refusal(ValueError):
    """A template does not render a conversation, or not so that its answers can be told."""


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation is token ids, and whether each is supervised."""

    ids: list[int]
    supervised: list[bool]


def settle_template(tokenizer: Any, template: str) -> None:
    """Give a tokenizer the chat template that an experiment names, "" for its own.

    Raises:
        InputError: it is no template.
    """
    if not template:
        return
    tokenizer.chat_template = template
    try:
        render(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    except Refusal as refusal:
        raise InputError(f"task.chat_template: it renders no conversation ({refusal}): correct it") from refusal


def rendered(tokenizer: Any, conversations: Sequence[Turns], everything: bool = False) -> list[Rendered | Refusal]:
    """Render conversations of turns {"role", "content", "weight"}; one that cannot be is a Refusal in its place.

    `everything`: all tokens are supervised, not those of the assistant alone.
    """
    marks = not everything and MARKS.search(template_of(tokenizer)) is not None
    plans: list[Plan | Refusal] = []
    for turns in conversations:
        try:
            plans.append(Plan.of(tokenizer, as_text(tokenizer, turns), marks, everything))
        except Refusal as refusal:
            plans.append(refusal)
    texts = [text for plan in plans if isinstance(plan, Plan) for text in plan.texts]
    tokens = iter(encoded(tokenizer, texts))
    found: list[Rendered | Refusal] = []
    for plan in plans:
        try:
            if isinstance(plan, Refusal):
                raise plan
            of_plan = [next(tokens) for _ in plan.texts]
            found.append(Rendered(of_plan[0], plan.mask(tokenizer, of_plan)))
        except Refusal as refusal:
            found.append(refusal)
    return found


@dataclass(frozen=True)
class Plan:
    """A plan has the texts to encode for a conversation: the whole, then for each answer that is learned what comes
    before it, and what ends with it; of a template that marks answers, or where all is learned, the whole alone."""

    turns: Turns
    texts: list[str]
    by_marks: bool
    everything: bool

    @staticmethod
    def of(tokenizer: Any, turns: Turns, marks: bool, everything: bool) -> "Plan":
        whole = render(tokenizer, turns)
        answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
        # What nobody asked for has no beginning that a template could write alone.
        to_learn = [place for place in answers if turns[place].get("weight", 1) and place > 0]
        by_marks = marks and len(to_learn) == len(answers)  # marks do not tell one answer from another
        texts = [whole]
        for place in to_learn if not (by_marks or everything) else ():
            after = whole if place == len(turns) - 1 else render(tokenizer, turns[: place + 1])
            texts += [render(tokenizer, turns[:place], answering=True), after]
        return Plan(turns, texts, by_marks, everything)

    def mask(self, tokenizer: Any, tokens: Sequence[list[int]]) -> list[bool]:
        """Return which tokens of the whole are supervised. Raise Refusal where a beginning is not how it begins."""
        whole = tokens[0]
        if self.by_marks:
            return marked_by_template(tokenizer, self.turns, whole)
        mask = [self.everything] * len(whole)
        for before, after in zip(tokens[1::2], tokens[2::2], strict=True):
            if whole[: len(after)] != after or after[: len(before)] != before:
                raise Refusal("the template writes the beginning of a conversation differently once it goes on")
            mask[len(before) : len(after)] = [True] * (len(after) - len(before))
        return mask


def marked_by_template(tokenizer: Any, turns: Turns, ids: Sequence[int]) -> list[bool]:
    """Return which tokens a template marks as generated. Raise Refusal where it marks those of another text."""
    how = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    found = applied(tokenizer, turns, **how)
    if list(found["input_ids"]) != list(ids):
        raise Refusal("the template's marks do not fit its text")
    return [bool(each) for each in found["assistant_masks"]]


def asking(tokenizer: Any, conversations: Sequence[Turns]) -> list[list[int] | Refusal]:
    """Render conversations up to where the assistant answers: token ids."""
    found: list[str | Refusal] = []
    for turns in conversations:
        try:
            found.append(render(tokenizer, as_text(tokenizer, turns), answering=True))
        except Refusal as refusal:
            found.append(refusal)
    tokens = iter(encoded(tokenizer, [each for each in found if isinstance(each, str)]))
    return [next(tokens) if isinstance(each, str) else each for each in found]


def turn_ends(tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer by the chat template: the first special one behind it, if there is one."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (whole,) = rendered(tokenizer, [turns])
    (before,) = asking(tokenizer, [turns[:1]])
    if isinstance(whole, Refusal) or isinstance(before, Refusal):
        return []
    special = set(tokenizer.convert_tokens_to_ids(special_tokens(tokenizer)))
    return [token for token in whole.ids[len(before) :] if token in special][:1]


# ------------------------------------------------------------------------------------------------- the template's work


def template_of(tokenizer: Any) -> str:
    """Return the template that is used for conversations without tools; "" where there is none."""
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, Mapping):
        found = found.get("default")
    return found or ""


def render(tokenizer: Any, turns: Turns, answering: bool = False) -> str:
    """Render turns as text, `answering` with the beginning of an answer. Raise Refusal where the template does."""
    text: str = applied(tokenizer, turns, tokenize=False, add_generation_prompt=answering)
    return text


def applied(tokenizer: Any, turns: Turns, **how: Any) -> Any:
    """Apply a tokenizer's template. Raise Refusal with what it says."""
    said = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    template = template_of(tokenizer)
    if "strftime_now" in template:
        how["chat_template"] = TODAY + template
    try:
        return tokenizer.apply_chat_template(said, **how)
    except Exception as error:  # Jinja's own kinds, and whatever a template's expressions raise
        raise Refusal(" ".join(str(error).split())[:200] or type(error).__name__) from error


def encoded(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Encode rendered texts, which have their special tokens in them already."""
    if not texts:
        return []
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return found


def as_text(tokenizer: Any, turns: Turns) -> list[dict[str, Any]]:
    """Return the same turns, with spaces in what would become a special token: what somebody writes is text."""
    # An unknown word's token, which `special_tokens` leaves out, may be that which ends texts, as GPT-2's is.
    words = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    found = sorted({*special_tokens(tokenizer), *words}, key=lambda token: (-len(token), token))
    written = specials(tuple(token for token in found if len(token) > 1))
    if written is None:
        return [dict(turn) for turn in turns]
    return [{**turn, "content": written.sub(lambda found: " ".join(found[0]), turn["content"])} for turn in turns]


@lru_cache(maxsize=8)
def specials(tokens: tuple[str, ...]) -> re.Pattern[str] | None:
    """Make a pattern of special tokens, the longest first."""
    return re.compile("|".join(map(re.escape, tokens))) if tokens else None
