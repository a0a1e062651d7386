"""Estimate how long most examples are in tokens, before there is a tokenizer that could say it."""

from typing import Any

import numpy as np

from hellora.data.forms import USUAL
from hellora.data.settings import DataSettings
from hellora.data.tags import TOKENS

CHARACTERS = 3.5  # of a token, rather too few
MARKS = 8  # tokens that a model or a template puts around an example
USUAL_LENGTHS = (32, 64, 128, 256, 512, 1024)
MOST = 0.95  # of the examples are no longer


def usual_length(rows: Any, settings: DataSettings) -> int:
    """Return the least of the usual lengths that most rows of a `datasets.Dataset` fit, in tokens."""
    texts = [name for name in (settings.text, settings.text_pair) if name in rows.column_names]
    chosen = [name for name in ("prompt", settings.chosen) if name in rows.column_names]
    known = [name for name in (*USUAL, *TOKENS, settings.tokens, settings.messages) if name in rows.column_names]
    read = list(dict.fromkeys(chosen if settings.chosen in chosen else texts or known))
    characters = np.zeros(len(rows))
    for column in read:
        characters += [len(str(cell)) for cell in rows[column][:]]
    needed = float(np.quantile(characters, MOST)) / CHARACTERS + MARKS
    return next((length for length in USUAL_LENGTHS if length >= needed), USUAL_LENGTHS[-1])
