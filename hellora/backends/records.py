"""Turn a message into Flower's records, and back. A message is a safetensors file (`wire.py`); Flower carries its
tensors one by one, so that one that goes to many clients is stored once. This module needs no torch: a ClientApp's
process lives for a message.
"""

import json
from collections.abc import Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

TENSORS, MESSAGE, FIELDS, CONTRACT, STYPE = "tensors", "message", "fields", "contract", "safetensors"
FAILURE = "failure"  # the field of a note that says why there is no answer
METADATA = "__metadata__"  # of the safetensors format: 8 bytes of header length, the header as JSON, the tensors


def to_records(data: bytes, **texts: str) -> RecordDict:
    """Make records of a safetensors file that has `fields` in its header; `texts` (the contract) travel beside them."""
    length = int.from_bytes(data[:8], "little")
    header, start = json.loads(data[8 : 8 + length]), 8 + length
    fields = header.pop(METADATA)[FIELDS]
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        arrays[name] = Array(entry["dtype"], tuple(entry["shape"]), STYPE, data[start + begin : start + end])
    return RecordDict({TENSORS: ArrayRecord(arrays), MESSAGE: ConfigRecord({FIELDS: fields, **texts})})


def from_records(records: RecordDict) -> bytes:
    """Undo `to_records`; what the tensors are is for the reader of the file to check.

    Raises:
        ValueError: the records are not those of a message.
    """
    fields = text_of(records, FIELDS)
    if TENSORS not in records.array_records:
        raise ValueError(f"no record {TENSORS!r}")
    header: dict[str, Any] = {METADATA: {FIELDS: fields}}
    parts, offset = [], 0
    for name, array in sorted(records.array_records[TENSORS].items(), key=alignment):
        if array.stype != STYPE or name == METADATA:
            raise ValueError(f"tensor {name!r} is stored as {array.stype!r}")
        begin, offset = offset, offset + len(array.data)
        header[name] = {"dtype": array.dtype, "shape": list(array.shape), "data_offsets": [begin, offset]}
        parts.append(array.data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def alignment(item: tuple[str, Array]) -> tuple[bool, ...]:
    """Return a key that sorts tensors so that each begins at a multiple of its items' bytes."""
    size = len(item[1].data)
    return size % 8 != 0, size % 4 != 0, size % 2 != 0


def text_of(records: RecordDict, name: str) -> str:
    """Return a text that travelled beside the tensors. Raise ValueError where there is none."""
    text = records.config_records[MESSAGE].get(name) if MESSAGE in records.config_records else None
    if not isinstance(text, str):
        raise ValueError(f"no text {name!r}")
    return text


def hello_of(contract: str) -> RecordDict:
    """Make the records of a question that needs nothing but the contract."""
    return RecordDict({MESSAGE: ConfigRecord({CONTRACT: contract})})


def note(fields: Mapping[str, Any]) -> RecordDict:
    """Make records without tensors."""
    return RecordDict({MESSAGE: ConfigRecord({FIELDS: json.dumps(fields)})})


def fields_of(records: RecordDict) -> dict[str, Any]:
    """Return the fields of a note. Raise ValueError where they are not there."""
    fields = json.loads(text_of(records, FIELDS))
    if not isinstance(fields, dict):
        raise ValueError("the fields are not a table")
    return fields


def num_bytes(records: RecordDict) -> int:
    """Count the bytes of the tensors, their names, and the texts, without Flower's envelope."""
    arrays = [item for record in records.array_records.values() for item in record.items()]
    texts = [str(value) for record in records.config_records.values() for value in record.values()]
    return sum(len(name.encode()) + len(array.data) for name, array in arrays) + sum(len(t.encode()) for t in texts)
