"""What a client keeps of a run: versions that the server names, on disk, whole or not there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import bits

from hellora.core.errors import InputError
from hellora.deployment.kept import KeptTensors


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {
        "scaffold/block.0.query.lora_A": torch.full((4, 5), value),
        "scaffold/head.weight": torch.full((2, 3), value).T,
        "mine/count": torch.tensor(int(value)),
        "mine/none": torch.zeros(0, 2, dtype=torch.float64),
        "mine/yes": torch.tensor([True]),
    }


@pytest.fixture
def store(tmp_path: Path) -> KeptTensors:
    return KeptTensors(tmp_path / "kept" / "a run")


def names(store: KeptTensors) -> list[str]:
    return sorted(file.name for file in store.folder.iterdir()) if store.folder.exists() else []


def test_a_version_comes_back_bit_for_bit(store: KeptTensors) -> None:
    store.save(0, tensors(0.1))
    store.save(7, tensors(7.7))
    assert bits(store.load(7)) == bits(tensors(7.7))
    assert bits(store.load(7)) == bits(tensors(7.7)), "and again"
    assert store.versions() == [0, 7]
    assert bits(KeptTensors(store.folder).load(7)) == bits(tensors(7.7)), "for whoever comes later"


def test_nothing_may_be_kept(store: KeptTensors) -> None:
    store.save(3, {})
    assert store.load(3) == {}


def test_the_last_two_versions_are_kept(store: KeptTensors) -> None:
    for version in (0, 2, 3, 9, 10, 1_000_000):
        store.save(version, tensors(version))
        assert store.versions() == [v for v in (0, 2, 3, 9, 10, 1_000_000) if v <= version][-2:]
    assert names(store) == ["000010.safetensors", "1000000.safetensors"]


def test_a_client_keeps_as_many_versions_as_it_is_told(store: KeptTensors) -> None:
    more = KeptTensors(store.folder, 3)
    for version in range(5):
        more.save(version, {})
    assert more.versions() == [2, 3, 4]


def test_what_is_newer_than_the_version_to_begin_from_goes(store: KeptTensors) -> None:
    """Round 5 did not count: the client begins from 4 once more, and keeps a 5 or a 6 of its own."""
    store.save(4, tensors(4))
    store.save(5, tensors(5))
    assert bits(store.load(4)) == bits(tensors(4))
    assert store.versions() == [4]
    store.save(6, tensors(6))
    assert store.versions() == [4, 6]
    assert bits(store.load(4)) == bits(tensors(4)), "and once more"


def test_a_round_that_is_done_again_takes_the_place_of_the_first(store: KeptTensors) -> None:
    store.save(4, tensors(4))
    store.save(5, tensors(5))
    store.save(5, tensors(55))
    assert store.versions() == [4, 5]
    assert bits(store.load(5)) == bits(tensors(55))


def test_a_start_without_a_version_clears_all_versions_and_nothing_else(store: KeptTensors) -> None:
    """The folder's name comes from a server: whatever else is there is not ours to remove."""
    assert store.load(None) == {}
    store.save(1, tensors(1))
    store.save(2, tensors(2))
    below = store.folder / "a folder"
    below.mkdir()
    for other in (store.folder / "notes.txt", below / "000003.safetensors"):
        other.write_bytes(b"mine")
    assert store.load(None) == {}
    assert store.versions() == []
    assert names(store) == ["a folder", "notes.txt"]
    assert (below / "000003.safetensors").read_bytes() == b"mine"
    assert store.load(None) == {}


def test_runs_do_not_see_each_other(store: KeptTensors) -> None:
    other = KeptTensors(store.folder.with_name("another run"))
    store.save(1, tensors(1))
    other.save(1, tensors(2))
    other.load(None)
    assert bits(store.load(1)) == bits(tensors(1))


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def shortened(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:20])


def flipped(file: Path) -> None:
    """One bit of a number: a safetensors file with it is as good as any."""
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "absent": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "truncated": truncated,
    "one bit": flipped,
    "a piece of it": shortened,
    "other bytes": lambda file: file.write_bytes(b"\xff" * 400),
    "a text": lambda file: file.write_text("no tensors at all\n" * 9),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_version_that_is_not_there_whole_is_refused_in_one_line(
    damage: Callable[[Path], Any], store: KeptTensors
) -> None:
    store.save(3, tensors(3))
    store.save(4, tensors(4))
    damage(store.file(4))
    with pytest.raises(InputError) as caught:
        store.load(4)
    said = str(caught.value)
    assert said.startswith(f"what this client kept in round 4 is not in {store.folder} (")
    assert said.endswith("): put it back, or start the run again")
    assert "\n" not in said
    assert bits(store.load(3)) == bits(tensors(3)) if damage is not DAMAGES["a folder"] else True


def test_a_version_of_a_folder_that_never_was_is_refused(store: KeptTensors) -> None:
    with pytest.raises(InputError, match="kept in round 0 is not in"):
        store.load(0)


def test_a_write_that_was_cut_short_is_harmless(store: KeptTensors) -> None:
    """Killed while round 5 was written, and before that as the very first thing."""
    store.folder.mkdir(parents=True)
    (store.folder / "000004.safetensors.draft").write_bytes(b"half of it")
    assert store.versions() == []
    store.save(4, tensors(4))
    (store.folder / "000005.safetensors.draft").write_bytes(b"half of it")
    assert store.versions() == [4]
    assert bits(store.load(4)) == bits(tensors(4))
    store.save(5, tensors(5))
    store.save(6, tensors(6))
    assert names(store) == ["000005.safetensors", "000006.safetensors"]


def test_a_crash_at_any_step_leaves_the_version_to_begin_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop at each file operation of a save in turn: round 5 is there whole or not at all, and 4 is."""
    operations, stop_at = 0, 0

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
    for k in range(1, 6):
        store, stop_at = KeptTensors(tmp_path / str(k)), 0
        store.save(3, tensors(3))
        store.save(4, tensors(4))
        operations, stop_at = 0, k
        try:
            store.save(5, tensors(5))
            finished = True
        except KeyboardInterrupt:
            finished = False
        stop_at = 0
        if 5 in store.versions():
            assert bits(store.load(5)) == bits(tensors(5))
        seen.add((5 in store.versions(), finished))
        assert bits(store.load(4)) == bits(tensors(4))
        assert store.versions()[-1] == 4
    assert seen == {(False, False), (True, False), (True, True)}


def test_other_files_are_left_alone(store: KeptTensors) -> None:
    store.folder.mkdir(parents=True)
    (store.folder / "notes.safetensors").write_bytes(b"")
    (store.folder / "README").write_text("")
    for version in range(4):
        store.save(version, tensors(version))
    assert names(store) == ["000002.safetensors", "000003.safetensors", "README", "notes.safetensors"]
