"""A checkpoint is a run's last states on disk: safetensors and JSON, written so that a kill at any moment leaves whole
ones.

`checkpoint/state-000007.json` is the commit point of the state before round 7. It has a seal of its own, and the sha256
of `state-000007.safetensors`, which is written before it; both are written under another name and renamed into place.
"""

import hashlib
from collections.abc import Container, Mapping
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
from hellora.record.sealed import sealed_json, unsealed_json

FORMAT = 3  # of a checkpoint; 2 had one state, in state.json, and 1 had other names for the tensors of strategies
Saved = tuple[ServerState, dict[str, Any]]  # a state, and the run's record that was saved with it


def save_state(folder: Path, state: ServerState, record: Mapping[str, Any], keep: int = 1) -> None:
    """Make `state` and the run's `record` (JSON values) the last state in `folder`; the last `keep` stay there."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors, scales = flatten(state.adapter, "adapter/")
    tensors |= owned(state.strategies, "strategies")
    for owner, by_client in (("reports", state.reports), ("kept", state.kept)):
        for client, named in by_client.items():
            tensors |= owned(named, f"{owner}/{client}")
    data = save(on_their_own(tensors))
    fields = {
        "round": state.round,
        "sha256": hashlib.sha256(data).hexdigest(),
        "scales": scales,
        "kept_versions": {str(client): version for client, version in state.kept_versions.items()},
        "norms": {factors: list(norms) for factors, norms in state.norms.items()},
        "format": FORMAT,
        "record": record,
    }
    write_atomically(tensor_file(folder, state.round), data)
    write_atomically(state_file(folder, state.round), sealed_json(fields))
    before = [round for round in saved_rounds(folder) if round < state.round]
    remove_states(folder, besides={state.round, *before[len(before) - keep + 1 :]})


def load_state(folder: Path) -> Saved | None:
    """Load the last state in `folder` and the record saved with it; return None where there is none yet.

    Raises:
        InputError: it is damaged. `hellora run --resume` goes back to the last one that is whole.
    """
    saved = saved_rounds(folder)
    return load_round(folder, saved[-1]) if saved else None


def load_round(folder: Path, round: int) -> Saved:
    """Load the state before a round, and the record saved with it. Raise InputError where it is damaged."""
    file = state_file(folder, round)
    try:
        fields = unsealed_json(file.read_bytes())
        if fields["format"] != FORMAT or fields["round"] != round:
            raise ValueError(f"it has the format {fields['format']} and is of round {fields['round']}")
        file = tensor_file(folder, round)
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != fields["sha256"]:
            raise ValueError("its sha256 differs")
        tensors = load(data)
        state = ServerState(
            round=round,
            adapter=unflatten(tensors, fields["scales"], "adapter/"),
            strategies=select(tensors, "strategies"),
            reports=by_client(select(tensors, "reports")),
            kept=by_client(select(tensors, "kept")),
            kept_versions={int(client): int(version) for client, version in fields["kept_versions"].items()},
            norms={factors: tuple(norms) for factors, norms in fields["norms"].items()},
        )
        return state, fields["record"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{file} is damaged ({why})") from error


def saved_rounds(folder: Path) -> list[int]:
    """List the rounds before which there is a state in `folder`, ascending.

    Raises:
        InputError: what is there was written by an older hellora.
    """
    found = sorted(int(file.stem.removeprefix("state-")) for file in folder.glob("state-" + "[0-9]" * 6 + "*.json"))
    if not found and (folder / "state.json").exists():
        raise InputError(
            f"the checkpoint in {folder} has an older format than {FORMAT}, which this hellora reads: go on with the "
            f"version that began the run, or start it again"
        )
    return found


def remove_states(folder: Path, besides: Container[int]) -> None:
    """Remove all states but those before the rounds `besides`: the last first, and what commits one before its
    tensors, so that a kill leaves no gap and no half.
    """
    for old in sorted(folder.glob("state-*"), key=lambda file: (file.suffix == ".json", file.name), reverse=True):
        round = old.stem.removeprefix("state-")
        if not (round.isdecimal() and int(round) in besides and old.suffix in (".json", ".safetensors")):
            old.unlink()


def state_file(folder: Path, round: int) -> Path:
    return folder / f"state-{round:06d}.json"


def tensor_file(folder: Path, round: int) -> Path:
    return folder / f"state-{round:06d}.safetensors"


def by_client(tensors: Named) -> dict[int, dict[str, Tensor]]:
    """Group tensors named "client/name" by client and name."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        client, _, rest = name.partition("/")
        found.setdefault(int(client), {})[rest] = value
    return found
