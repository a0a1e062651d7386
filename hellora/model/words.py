"""Encode texts that are split into words, and tell which token is the first one of each word."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from hellora.core.errors import InputError
from hellora.model.normalise import plain
from hellora.model.resident import BaseModel
from hellora.model.texts import check_known, named

NO_WORD = -1


@dataclass(frozen=True)
class EncodedWords:
    """A text's words are tokens: what the model is given, by name, and at the first token of each word its place among
    the words, elsewhere NO_WORD. `cut` says whether it was longer; for `missed` words the tokenizer has no token."""

    inputs: dict[str, list[int]]
    places: list[int]
    cut: bool
    missed: int


def check_tells_words(tokenizer: Any, name: str) -> None:
    """Raise InputError unless a tokenizer can tell which word a token is of."""
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"model.name: the tokenizer of {name!r} does not tell which word a token is of: name a model with a fast "
            f"one (tokenizer.json)"
        )


def word_prefix(tokenizer: Any) -> str:
    """Return what has to stand before each word, so that its tokens are those that it has in running text: a space,
    where a tokenizer tells words by it, as those of RoBERTa and GPT-2 do; else nothing."""

    def last_of(text: Any, **how: Any) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False, **how)["input_ids"][-1:]
        return found

    running, split = last_of("a a"), last_of(["a", "a"], is_split_into_words=True)
    return " " if running != split and running == last_of([" a", " a"], is_split_into_words=True) else ""


def encoded_words(base: BaseModel, rows: Any, limit: int) -> list[EncodedWords]:
    """Encode the column `tokens` of rows, a `datasets.Dataset`, each in at most `limit` tokens. Special tokens in a
    word are text.

    Raises:
        InputError: a row cannot be encoded, has no token, or one that the model has no vector for; the row is named.
    """
    tokenizer, texts = base.processor, rows["tokens"][:]
    before = word_prefix(tokenizer)
    flat = iter(plain(tokenizer, [before + word for word in chain.from_iterable(texts)]))
    words = [[next(flat) for _ in text] for text in texts]
    how = {"is_split_into_words": True, "split_special_tokens": True, "verbose": False}
    try:
        whole = tokenizer(words, **how)
        found = tokenizer(words, truncation=True, max_length=limit, **how)
    except Exception as error:  # tokenizers raise their own kind
        why = " ".join(str(error).split())[:200]
        raise InputError(f"data.tokens: the model's tokenizer cannot encode these words ({why})") from error
    check_known(base, rows, "tokens", found["input_ids"])
    encoded = []
    for row, (text, ids) in enumerate(zip(texts, whole["input_ids"], strict=True)):
        if not found["input_ids"][row]:
            raise InputError(
                f"data.tokens: the model's tokenizer finds no token in {named(rows, row, 'tokens')}: leave the row out"
            )
        places = first_tokens(found.word_ids(row))
        inputs = {name: values[row] for name, values in found.items()}
        missed = len(text) - len({*whole.word_ids(row)} - {None})
        encoded.append(EncodedWords(inputs, places, len(ids) > len(places), missed))
    return encoded


def first_tokens(words: Sequence[int | None]) -> list[int]:
    """Return the word of each token that is the first one of it, else NO_WORD; `words` has the word of each token."""
    seen: set[int] = set()
    places = []
    for word in words:
        is_first = word is not None and word not in seen
        places.append(word if is_first and word is not None else NO_WORD)
        if word is not None:
            seen.add(word)
    return places
