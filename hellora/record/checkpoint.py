"""A run's state on disk: safetensors and JSON, written so that a kill at any moment leaves a whole one.

`checkpoint/state.json` is the commit point. It names the tensor file of its round and that file's sha256; both are
written under another name and renamed into place.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from hellora.backends.wire import flatten, on_their_own, unflatten
from hellora.core.errors import InputError
from hellora.core.types import ServerState
from hellora.record.atomic import write_atomically


def save_state(folder: Path, state: ServerState, record: Mapping[str, Any]) -> None:
    """Make `state` and the run's `record` (JSON values) the checkpoint in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors, scales = flatten(state.adapter, "adapter/")
    tensors |= {f"memory/{name}": value for name, value in state.memory.items()}
    tensors |= {f"reports/{client}": value for client, value in state.reports.items()}
    tensors |= {f"reported_ranks/{client}": torch.tensor(rank) for client, rank in state.reported_ranks.items()}
    for client, head in state.private.items():
        tensors |= {f"private/{client}/{name}": value for name, value in head.items()}
    data = save(on_their_own(tensors))
    file = folder / f"state-{state.round:06d}.safetensors"
    write_atomically(file, data)
    fields = {
        "round": state.round,
        "tensors": file.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "scales": scales,
        "record": record,
    }
    write_atomically(folder / "state.json", json.dumps(fields, indent=1).encode())
    for old in folder.glob("state-*"):
        if old.name != file.name:
            old.unlink()


def load_state(folder: Path) -> tuple[ServerState, dict[str, Any]] | None:
    """The checkpoint in `folder` and the record saved with it, or None where there is none yet.

    Raises:
        InputError: a file of it is damaged.
    """
    if not (folder / "state.json").exists():
        return None
    try:
        fields = json.loads((folder / "state.json").read_bytes())
        data = (folder / fields["tensors"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != fields["sha256"]:
            raise ValueError(f"the sha256 of {fields['tensors']} differs")
        tensors = load(data)
        adapter = unflatten(tensors, fields["scales"], "adapter/")
        owned: dict[str, dict[str, Any]] = {"memory": {}, "reports": {}, "private": {}, "reported_ranks": {}}
        for name, value in tensors.items():
            owner, _, rest = name.partition("/")
            if owner in owned:
                owned[owner][rest] = value
        private: dict[int, dict[str, Any]] = {}
        for name, value in owned["private"].items():
            client, _, parameter = name.partition("/")
            private.setdefault(int(client), {})[parameter] = value
        reports = {int(client): value for client, value in owned["reports"].items()}
        ranks = {int(client): int(value) for client, value in owned["reported_ranks"].items()}
        state = ServerState(int(fields["round"]), adapter, owned["memory"], reports, private, ranks)
        return state, fields["record"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise InputError(
            f"the checkpoint in {folder} is damaged ({error}): remove that folder to start the run again from round 0"
        ) from error
