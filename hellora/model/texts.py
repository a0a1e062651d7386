"""Encode texts such that each token is of the text, and name the row of one that cannot be encoded."""

from collections.abc import Mapping, Sequence
from typing import Any

from hellora.core.errors import InputError
from hellora.model.normalise import embedding_rows, plain
from hellora.model.resident import BaseModel

Tokens = Mapping[str, list[Any]]
SHOWN = 40  # characters of a text in a message


def encoded_texts(base: BaseModel, rows: Any, columns: Sequence[str], target: bool = False, **how: Any) -> Tokens:
    """Encode a column of texts, or two as pairs; `how` is for the tokenizer. Special tokens in a text are text. A
    `target` is what a decoder is to say; some tokenizers write it otherwise.

    Raises:
        InputError: a row cannot be encoded, or the model has no vector for one of its tokens; the row is named.
    """
    texts = [plain(base.processor, rows[column][:]) for column in columns]
    how = {"split_special_tokens": True, "verbose": False, **how}
    try:
        tokens: Tokens = base.processor(text_target=texts[0], **how) if target else base.processor(*texts, **how)
    except Exception as error:  # tokenizers raise their own kind, such as one without a token for unknown words
        raise InputError(unreadable(base, rows, columns, texts, how)) from error
    check_known(base, rows, columns[0], tokens["input_ids"])
    return tokens


def check_known(base: BaseModel, rows: Any, column: str, encoded: Sequence[Sequence[int]]) -> None:
    """Raise InputError where the model has no vector for a token of a row, of which `encoded` has the token ids."""
    known = embedding_rows(base.net)
    for row, ids in enumerate(encoded):
        if known is not None and ids and max(ids) >= known:
            raise InputError(
                f"model.name: the tokenizer makes token {max(ids)} of {named(rows, row, column)}, and the model has "
                f"vectors for {known} tokens only: they do not belong together: name a model with its own tokenizer"
            )


def unreadable(base: BaseModel, rows: Any, columns: Sequence[str], texts: Sequence[list[str]], how: Any) -> str:
    """Find the first row that the tokenizer cannot encode, and say why."""
    for row, text in enumerate(zip(*texts, strict=True)):
        try:
            base.processor(*([part] for part in text), **how)
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            return (
                f"data.{columns[0]}: the model's tokenizer cannot encode {named(rows, row, columns[0])} ({why}): mend "
                f"the data, or name another model"
            )
    return f"data.{columns[0]}: the model's tokenizer cannot encode these texts: name another model"


def named(rows: Any, row: int, column: str) -> str:
    """Name a row by its place in the source, of which the rows at hand may be a selection, and by how it begins."""
    drawn = getattr(rows, "_indices", None)
    place = row if drawn is None else drawn.column(0)[row].as_py()
    text = str(rows[column][row])
    return f"row {place} ({text[:SHOWN]!r}{'…' * (len(text) > SHOWN)})"


def within(base: BaseModel, rows: Any, column: str, limit: int, target: bool = False) -> tuple[list[list[int]], int]:
    """Encode a column of texts in at most `limit` tokens each, as the tokenizer cuts them, which keeps what it puts
    around a text; also say how many were longer."""
    whole: list[list[int]] = encoded_texts(base, rows, (column,), target)["input_ids"]
    longer = sum(len(ids) > limit for ids in whole)
    if not longer:
        return whole, 0
    return encoded_texts(base, rows, (column,), target, truncation=True, max_length=limit)["input_ids"], longer
