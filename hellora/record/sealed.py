"""A file that carries the digest of its own content, so that one flipped bit is found when it is read."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SHA256 = 32  # bytes
MARK = b"# sha256 "  # opens the last line of a sealed text, a comment in TOML


def sealed_json(fields: Mapping[str, Any]) -> bytes:
    """Write fields as JSON, with the sha256 of all the others under "seal"."""
    written = json.loads(json.dumps(fields))  # as it will be read: names are texts
    return json.dumps({**written, "seal": digest(written)}, indent=1).encode()


def unsealed_json(data: bytes) -> dict[str, Any]:
    """Read what `sealed_json` wrote, without the seal. Raise ValueError where it is something else."""
    fields = json.loads(data)
    if not isinstance(fields, dict) or "seal" not in fields:
        raise ValueError("it has no seal")
    if fields.pop("seal") != digest(fields):
        raise ValueError("its sha256 differs")
    return fields


def digest(fields: Mapping[str, Any]) -> str:
    """Return the sha256 of fields, whatever their order and the blanks between them."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def sealed_text(text: str) -> bytes:
    """Return a text with a last line that has its sha256."""
    data = text.encode()
    return data + MARK + hashlib.sha256(data).hexdigest().encode() + b"\n"


def check_sealed_text(data: bytes) -> None:
    """Raise ValueError where a text is not what its last line says; one without such a line is not sealed."""
    text, mark, said = data.rpartition(MARK)
    if mark and said.strip() != hashlib.sha256(text).hexdigest().encode():
        raise ValueError("its sha256 differs")


def sealed_bytes(data: bytes) -> bytes:
    """Return bytes with their sha256 behind them."""
    return data + hashlib.sha256(data).digest()


def unsealed_bytes(data: bytes) -> bytes:
    """Return what `sealed_bytes` was given. Raise ValueError where it was something else."""
    if hashlib.sha256(data[:-SHA256]).digest() != data[-SHA256:]:
        raise ValueError("its sha256 differs")
    return data[:-SHA256]
