"""Encode texts such that each token is of the text, and name the row of one that cannot be encoded."""

from collections.abc import Mapping, Sequence
from typing import Any

from hellora.core.errors import InputError
from hellora.model.normalise import embedding_rows, plain
from hellora.model.resident import BaseModel

Tokens = Mapping[str, list[Any]]
SHOWN = 40  # characters of a text in a message


def encoded_texts(base: BaseModel, rows: Any, columns: Sequence[str], **how: Any) -> Tokens:
    """Encode a column of texts, or two as pairs; `how` is for the tokenizer. Special tokens in a text are text.

    Raises:
        InputError: a row cannot be encoded, or the model has no vector for one of its tokens; the row is named.
    """
    texts = [plain(base.processor, rows[column][:]) for column in columns]
    how = {"split_special_tokens": True, "verbose": False, **how}
    try:
        tokens: Tokens = base.processor(*texts, **how)
    except Exception as error:  # tokenizers raise their own kind, such as one without a token for unknown words
        raise InputError(unreadable(base, rows, columns, texts, how)) from error
    known = embedding_rows(base.net)
    for row, ids in enumerate(tokens["input_ids"]):
        if known is not None and ids and max(ids) >= known:
            raise InputError(
                f"model.name: the tokenizer makes token {max(ids)} of {named(rows, row, columns[0])}, and the model "
                f"has vectors for {known} tokens only: they do not belong together: name a model with its own tokenizer"
            )
    return tokens


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
