"""A state on disk: back bit for bit, or refused by name."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import random_adapter, state_bits, tiny_spec

from hellora.core.errors import InputError
from hellora.core.state import ServerState
from hellora.core.types import Adapter, LoraPair
from hellora.record.atomic import write_atomically
from hellora.record.checkpoint import load_round, load_state, save_state, saved_rounds

ADAPTER = random_adapter(tiny_spec(), seed=0)
STATE = ServerState(
    round=7,
    adapter=ADAPTER,
    strategies={
        "allocator/scores": torch.tensor([0.1, torch.nan, -0.0], dtype=torch.float64),
        "allocator/refreshed": torch.tensor(5),
        "server_optimizer/block.0.query.lora_A": torch.rand(4, 5, dtype=torch.float64),
    },
    reports={
        3: {"layer_scores/scores": torch.tensor([1.0, torch.nan], dtype=torch.float64)},
        12: {"layer_scores/scores": torch.zeros(2), "hetlora/rank": torch.tensor(3)},
        4: {"hetlora/rank": torch.tensor(1)},
    },
    kept={
        4: {"private/head.weight": torch.rand(2, 3), "private/head.bias": torch.rand(2)},
        10: {"private/head.weight": torch.rand(2, 3), "mine/none": torch.zeros(0, 4), "mine/yes": torch.tensor(True)},
        11: {"scaffold/block.0.query.lora_A": torch.rand(4, 5)},
    },
    kept_versions={4: 6, 11: 0},
    norms={"both": (0.1, 1e300), "A": (1 / 3,)},
)
RESIDUAL = {"block.1.query": replace(random_adapter(tiny_spec(), seed=1).pairs["block.1.query"], scale=1.0)}
PROTOTYPES = {rank: random_adapter(tiny_spec(max_rank=rank), seed=rank) for rank in (1, 3)}
RECORD: dict[str, Any] = {"lines": 7, "initial": {"loss": 2.5}, "name": "größe", "none": None}


def loaded(folder: Path) -> tuple[ServerState, dict[str, Any]]:
    found = load_state(folder)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "state",
    [
        STATE,
        ServerState(0, ADAPTER),
        ServerState(3, Adapter({})),
        replace(
            STATE, adapter=Adapter({"m": LoraPair(torch.rand(2, 3).bfloat16(), torch.rand(4, 2).bfloat16(), 1 / 3)})
        ),
        replace(STATE, adapter=Adapter({"head.0.q": LoraPair(torch.rand(2, 3), torch.rand(4, 2), 0.1)}, ADAPTER.head)),
        replace(STATE, adapter=replace(ADAPTER, residual=RESIDUAL, prototypes=PROTOTYPES)),
        replace(STATE, strategies={"a": torch.arange(6.0).view(2, 3).T}),  # not contiguous
        replace(STATE, adapter=replace(ADAPTER, residual=ADAPTER.pairs, prototypes={1: ADAPTER, 2: ADAPTER})),
    ],
    ids=["full", "first", "empty", "bf16", "a module named head", "prototypes", "transposed", "shared tensors"],
)
def test_round_trip(state: ServerState, tmp_path: Path) -> None:
    save_state(tmp_path / "new" / "checkpoint", state, RECORD)
    found, record = loaded(tmp_path / "new" / "checkpoint")
    assert state_as_float64(found) == state_as_float64(state)
    assert record == RECORD
    assert {n: p.scale for n, p in found.adapter.pairs.items()} == {n: p.scale for n, p in state.adapter.pairs.items()}
    assert list(found.adapter.pairs) == list(state.adapter.pairs), "in the model's order"
    assert found.adapter.head.keys() == state.adapter.head.keys()
    assert list(found.adapter.prototypes) == list(state.adapter.prototypes)
    assert {n: p.scale for n, p in found.adapter.residual.items()} == dict.fromkeys(state.adapter.residual, 1.0)
    assert found.kept.keys() == state.kept.keys()
    assert found.private.keys() == state.private.keys()
    assert found.reports.keys() == state.reports.keys()
    assert found.norms == state.norms


def state_as_float64(state: ServerState) -> Any:
    """numpy has no bf16; float64 holds every bf16 exactly, and its dtype is compared beside it."""
    if not any(p.A.dtype == torch.bfloat16 for p in state.adapter.pairs.values()):
        return state_bits(state)
    pairs = {n: LoraPair(p.A.double(), p.B.double(), p.scale) for n, p in state.adapter.pairs.items()}
    dtypes = {t.dtype for p in state.adapter.pairs.values() for t in (p.A, p.B)}
    return dtypes, state_bits(replace(state, adapter=replace(state.adapter, pairs=pairs)))


def test_there_may_be_none_yet(tmp_path: Path) -> None:
    assert load_state(tmp_path / "absent") is None
    (tmp_path / "state-000001.safetensors").write_bytes(b"a tensor file whose JSON never came")
    (tmp_path / "state-000001.json.draft").write_text("{")
    assert load_state(tmp_path) is None


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_states_stay_and_older_ones_go(keep: int, tmp_path: Path) -> None:
    for round in range(6):
        save_state(tmp_path, replace(STATE, round=round), RECORD | {"round": round}, keep)
        kept = range(max(0, round + 1 - keep), round + 1)
        assert files_in(tmp_path) == {f"state-{r:06d}.{kind}" for r in kept for kind in ("json", "safetensors")}
        assert saved_rounds(tmp_path) == list(kept)
    assert loaded(tmp_path)[0].round == 5
    for round in kept:
        state, record = load_round(tmp_path, round)
        assert state_bits(state) == state_bits(replace(STATE, round=round))
        assert record["round"] == round


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_state_of_an_earlier_round_makes_later_ones_go(tmp_path: Path) -> None:
    for round in (4, 5, 6, 5):
        save_state(tmp_path, replace(STATE, round=round), RECORD, keep=3)
    assert saved_rounds(tmp_path) == [4, 5]


def test_a_checkpoint_of_an_older_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(
        InputError, match="has an older format than 3, which this hellora reads: go on with the version"
    ):
        load_state(tmp_path)


def test_the_same_round_may_be_saved_again(tmp_path: Path) -> None:
    save_state(tmp_path, STATE, RECORD)
    save_state(tmp_path, replace(STATE, adapter=random_adapter(tiny_spec(), seed=1)), {"second": True})
    state, record = loaded(tmp_path)
    assert record == {"second": True}
    assert torch.equal(state.adapter.head["bias"], random_adapter(tiny_spec(), seed=1).head["bias"])


def test_a_write_that_was_cut_short_is_harmless(tmp_path: Path) -> None:
    """Killed while writing the tensors, and killed before their JSON was renamed."""
    save_state(tmp_path, STATE, RECORD)
    (tmp_path / "state-000008.safetensors.draft").write_bytes(b"half")
    (tmp_path / "state-000008.json.draft").write_text('{"round": 8, "tens')
    assert state_bits(loaded(tmp_path)[0]) == state_bits(STATE)
    (tmp_path / "state-000008.safetensors").write_bytes(b"whole, but no JSON commits it yet")
    assert state_bits(loaded(tmp_path)[0]) == state_bits(STATE)
    save_state(tmp_path, replace(STATE, round=8), RECORD)
    assert files_in(tmp_path) == {"state-000008.json", "state-000008.safetensors"}


def test_a_crash_at_any_step_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop at each file operation of a save in turn: the old state or the new one is there, never neither."""
    operations = 0
    stop_at = 0

    def stopping(original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            nonlocal operations
            operations += 1
            if operations == stop_at:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        return operation

    for name in ("open", "replace", "unlink"):
        monkeypatch.setattr(Path, name, stopping(getattr(Path, name)))
    seen = set()
    for k in range(1, 12):
        folder = tmp_path / str(k)
        stop_at = 0
        save_state(folder, STATE, RECORD)
        operations, stop_at = 0, k
        try:
            save_state(folder, replace(STATE, round=8), RECORD)
            finished = True
        except KeyboardInterrupt:
            finished = False
        stop_at = 0
        state, _ = loaded(folder)
        assert state.round in (7, 8)
        assert state_bits(replace(state, round=7)) == state_bits(STATE)
        seen.add((state.round, finished))
    assert seen == {(7, False), (8, False), (8, True)}


def truncated_tensors(folder: Path) -> None:
    file = folder / "state-000007.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def empty_tensors(folder: Path) -> None:
    (folder / "state-000007.safetensors").write_bytes(b"")


def flipped_bit(folder: Path) -> None:
    file = folder / "state-000007.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))


def missing_tensors(folder: Path) -> None:
    (folder / "state-000007.safetensors").unlink()


def truncated_json(folder: Path) -> None:
    (folder / "state-000007.json").write_bytes((folder / "state-000007.json").read_bytes()[:-3])


def empty_json(folder: Path) -> None:
    (folder / "state-000007.json").write_bytes(b"")


def not_text(folder: Path) -> None:
    (folder / "state-000007.json").write_bytes(b"\xff\xfe\x00{")


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        fields = json.loads((folder / "state-000007.json").read_text())
        fields = change(fields) or fields
        (folder / "state-000007.json").write_text(json.dumps(fields))

    return damage


DAMAGES = {
    "truncated tensors": truncated_tensors,
    "empty tensors": empty_tensors,
    "flipped bit": flipped_bit,
    "missing tensors": missing_tensors,
    "truncated json": truncated_json,
    "empty json": empty_json,
    "not text": not_text,
    "json of another kind": edited(lambda _: [1, 2]),
    "without a round": edited(lambda fields: fields.pop("round") and None),
    "round is text": edited(lambda fields: fields.update(round="x")),
    "without the digest": edited(lambda fields: fields.pop("sha256") and None),
    "without scales": edited(lambda fields: fields.pop("scales") and None),
    "a scale of no module": edited(lambda fields: fields["scales"].update(other=1.0)),
    "scales of another kind": edited(lambda fields: fields.update(scales=3)),
    "without a record": edited(lambda fields: fields.pop("record") and None),
    "another round": edited(lambda fields: fields.update(round=6)),
    "another format": edited(lambda fields: fields.update(format=4)),
    "without the seal": edited(lambda fields: fields.pop("seal") and None),
    "a number of the record": edited(lambda fields: fields["record"].update(lines=8)),
}


@pytest.mark.parametrize("damage", list(DAMAGES.values()), ids=list(DAMAGES))
def test_damage_is_refused_by_the_name_of_the_file(damage: Callable[[Path], None], tmp_path: Path) -> None:
    save_state(tmp_path, STATE, RECORD)
    damage(tmp_path)
    with pytest.raises(InputError) as caught:
        load_state(tmp_path)
    assert re.match(rf"{re.escape(str(tmp_path))}/state-000007\.(json|safetensors) is damaged \(", str(caught.value))
    assert "\n" not in str(caught.value)


def test_write_atomically_replaces_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    write_atomically(file, b"first, longer")
    write_atomically(file, b"second")
    assert file.read_bytes() == b"second"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
