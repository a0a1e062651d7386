"""A checkpoint is a run's state on disk: safetensors and JSON, written so that a kill at any moment leaves a whole one.

`checkpoint/state.json` is the commit point. It names the tensor file of its round and that file's sha256; both are
written under another name and renamed into place.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hellora.backends.wire import flatten, on_their_own, unflatten
from hellora.core.errors import InputError
from hellora.core.exchange import Named
from hellora.core.state import ServerState, owned, select
from hellora.record.atomic import write_atomically

FORMAT = 2  # of a checkpoint; 1 had other names for the tensors of strategies


def save_state(folder: Path, state: ServerState, record: Mapping[str, Any]) -> None:
    """Make `state` and the run's `record` (JSON values) the checkpoint in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors, scales = flatten(state.adapter, "adapter/")
    tensors |= owned(state.strategies, "strategies")
    for owner, by_client in (("reports", state.reports), ("kept", state.kept)):
        for client, named in by_client.items():
            tensors |= owned(named, f"{owner}/{client}")
    data = save(on_their_own(tensors))
    file = folder / f"state-{state.round:06d}.safetensors"
    write_atomically(file, data)
    fields = {
        "round": state.round,
        "tensors": file.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "scales": scales,
        "kept_versions": {str(client): version for client, version in state.kept_versions.items()},
        "format": FORMAT,
        "record": record,
    }
    write_atomically(folder / "state.json", json.dumps(fields, indent=1).encode())
    for old in folder.glob("state-*"):
        if old.name != file.name:
            old.unlink()


def load_state(folder: Path) -> tuple[ServerState, dict[str, Any]] | None:
    """Load the checkpoint in `folder` and the record saved with it; return None where there is none yet.

    Raises:
        InputError: a file of it is damaged.
    """
    if not (folder / "state.json").exists():
        return None
    try:
        fields = json.loads((folder / "state.json").read_bytes())
        if (found := fields.get("format", 1)) != FORMAT:
            raise InputError(
                f"the checkpoint in {folder} has the format {found}, and this hellora reads {FORMAT}: go on with the "
                f"version that began the run, or start it again"
            )
        data = (folder / fields["tensors"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != fields["sha256"]:
            raise ValueError(f"the sha256 of {fields['tensors']} differs")
        tensors = load(data)
        adapter = unflatten(tensors, fields["scales"], "adapter/")
        versions = {int(client): int(version) for client, version in fields["kept_versions"].items()}
        state = ServerState(
            round=int(fields["round"]),
            adapter=adapter,
            strategies=select(tensors, "strategies"),
            reports=by_client(select(tensors, "reports")),
            kept=by_client(select(tensors, "kept")),
            kept_versions=versions,
        )
        return state, fields["record"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise InputError(
            f"the checkpoint in {folder} is damaged ({error}): remove that folder to start the run again from round 0"
        ) from error


def by_client(tensors: Named) -> dict[int, dict[str, Tensor]]:
    """Group tensors named "client/name" by client and name."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        client, _, rest = name.partition("/")
        found.setdefault(int(client), {})[rest] = value
    return found
