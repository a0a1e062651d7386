"""Read settings as they are typed on a command line."""

import re
import tomllib
from collections.abc import Sequence
from typing import Any

from hellora.core.errors import InputError

NAMES = re.compile(r"\[([^][{}\"']+)\]")  # a list as it is where a shell has taken its quotes


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
    """Read a TOML value; take what is none as a string, or a list of strings, so that names need no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        names = NAMES.fullmatch(text)
        return [parse_value(name.strip()) for name in names[1].split(",")] if names else text
