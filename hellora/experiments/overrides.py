"""Read settings as they are typed on a command line."""

import tomllib
from collections.abc import Sequence
from typing import Any

from hellora.core.errors import InputError


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Read `section.key=value` texts as settings; the last one counts."""
    settings = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {text!r}: write it as section.key=value, such as train.lr=1e-3")
        settings[key.strip()] = parse_value(value.strip())
    return settings


def parse_value(text: str) -> Any:
    """Read a TOML value; take what is none as a string, so that names need no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
