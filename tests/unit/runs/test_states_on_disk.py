"""A run's states on disk: none is not finite, a damaged one is gone back from, a kill leaves no trace."""

import json
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from factories import state_bits
from small_runs import bias_of, experiment_of, light, outcome, run_small

from hellora.core.errors import InputError, RunError
from hellora.core.state import ServerState
from hellora.experiments.config import read_experiment
from hellora.record.checkpoint import load_round, load_state, saved_rounds
from hellora.record.last_good import last_good
from hellora.record.run_folder import RunFolder
from hellora.record.sealed import sealed_json, unsealed_json


@pytest.fixture(autouse=True)
def lightly(monkeypatch: pytest.MonkeyPatch) -> None:
    light(monkeypatch)


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A run that nobody disturbed: five rounds, three states."""
    out = tmp_path / "alone"
    run_small(out)
    return out


def unfinished(run: Path, out: Path) -> Path:
    """The same run before its end was noted."""
    shutil.copytree(run, out)
    (out / "summary.json").unlink()
    shutil.rmtree(out / "adapter")
    return out


def flip(file: Path, place: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1 << bit
    file.write_bytes(bytes(data))


# ---------------------------------------------------------------------------------------------------------- not finite


def test_an_evaluation_that_is_not_finite_stops_the_run_before_its_state_is_saved(tmp_path: Path) -> None:
    def diverged(state: ServerState) -> dict[str, float]:
        return {"accuracy": 0.5, "loss": float("nan") if state.round > 2 else 1.0}

    with pytest.raises(
        RunError, match=r"round 2 had 0 usable updates.* makes of round 2 the loss on test examples is nan"
    ):
        run_small(tmp_path, evaluate=diverged)
    assert saved_rounds(tmp_path / "checkpoint") == [0, 1, 2]
    assert len((tmp_path / "rounds.jsonl").read_text().splitlines()) == 2
    assert "the loss on test examples is nan" in (tmp_path / "error.log").read_text()
    assert run_small(tmp_path, resume=True).first_round == 2


# ---------------------------------------------------------------------------------------------------------- going back


@pytest.mark.parametrize("round", [3, 4, 5])
def test_a_run_goes_back_and_comes_to_the_same_end(alone: Path, tmp_path: Path, round: int) -> None:
    out = tmp_path / "back"
    shutil.copytree(alone, out)
    heard = run_small(out, resume=True, from_round=round)
    assert heard.first_round == round
    assert outcome(out) == outcome(alone)
    lines = (alone / "rounds.jsonl").read_bytes().splitlines(keepends=True)
    aside = out / f"rounds-after-{round}.jsonl"
    if round == 5:
        assert not aside.exists()
        assert heard.notes == []
    else:
        assert aside.read_bytes() == b"".join(lines[round:])
        assert (out / f"summary-after-{round}.json").read_bytes() == (alone / "summary.json").read_bytes()
        assert (out / f"adapter-after-{round}" / "adapter.txt").is_file()
        assert heard.notes == [
            f"going back to before round {round}: what came after it is set aside, as *-after-{round}"
        ]


def test_what_is_set_aside_twice_is_numbered(alone: Path) -> None:
    run_small(alone, resume=True, from_round=4)
    (alone / "rounds-after-4.jsonl").write_text("another\n")
    run_small(alone, resume=True, from_round=4)
    assert {file.name for file in alone.glob("*-after-*")} == {
        "rounds-after-4.jsonl",
        "rounds-after-4-2.jsonl",
        "summary-after-4.json",
        "summary-after-4-2.json",
        "adapter-after-4",
        "adapter-after-4-2",
    }


def test_what_is_not_kept_is_refused_before_anything_changes(alone: Path) -> None:
    before = outcome(alone)
    with pytest.raises(
        InputError, match="--from-round 1: the states that are kept are those before the rounds 3, 4, 5"
    ):
        run_small(alone, resume=True, from_round=1)
    with pytest.raises(InputError, match="--from-round goes back in a run that is there: give --resume, too"):
        run_small(alone, from_round=4)
    assert outcome(alone) == before


def test_how_many_are_kept_may_change(tmp_path: Path) -> None:
    run_small(tmp_path, keep=1)
    assert saved_rounds(tmp_path / "checkpoint") == [5]
    run_small(tmp_path, resume=True, keep=4)


# -------------------------------------------------------------------------------------------------------------- damage


def damage_lines(out: Path) -> str:
    flip(out / "rounds.jsonl", (out / "rounds.jsonl").read_bytes().rindex(b'"uplink_bytes"') + 17)
    return "rounds.jsonl"


def damage_tensors(out: Path) -> str:
    flip(out / "checkpoint" / "state-000005.safetensors", -5)
    return "state-000005.safetensors"


def damage_json(out: Path) -> str:
    file = out / "checkpoint" / "state-000005.json"
    file.write_text(file.read_text().replace('"accuracy": 0.5', '"accuracy": 0.4'))
    return "state-000005.json"


@pytest.mark.parametrize("damage", [damage_lines, damage_tensors, damage_json])
def test_a_damaged_state_is_gone_back_from_with_a_word(
    alone: Path, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    out = unfinished(alone, tmp_path / "damaged")
    name = damage(out)
    heard = run_small(out, resume=True)
    assert heard.first_round == 4
    assert name in heard.notes[0]
    assert "is damaged (" in heard.notes[0]
    assert "so the state before round 4 is used" in heard.notes[0]
    assert outcome(out) == outcome(alone)


def test_where_no_state_is_whole_the_run_is_refused(alone: Path, tmp_path: Path) -> None:
    out = unfinished(alone, tmp_path / "damaged")
    for file in (out / "checkpoint").glob("*.json"):
        flip(file, 40)
    before = outcome(out)
    with pytest.raises(InputError, match=r"state-000005\.json is damaged .*: no other state is whole; remove"):
        run_small(out, resume=True)
    assert outcome(out) == before


def test_a_damaged_experiment_is_refused_by_name(alone: Path, tmp_path: Path) -> None:
    out = unfinished(alone, tmp_path / "damaged")
    text = (out / "experiment.toml").read_text()
    (out / "experiment.toml").write_text(text.replace("threads = 1", "threads = 2"))
    with pytest.raises(InputError, match=r"experiment\.toml is damaged \(its sha256 differs\)"):
        run_small(out, resume=True)


def test_a_damaged_summary_is_refused_by_name(alone: Path) -> None:
    text = (alone / "summary.json").read_text()
    (alone / "summary.json").write_text(text.replace('"accuracy": 0.5', '"accuracy": 0.6'))
    with pytest.raises(InputError, match=r"summary\.json is damaged: remove it, and --resume writes it again"):
        run_small(alone, resume=True)


def test_a_seal_is_of_the_values_whatever_the_names_are() -> None:
    fields = {"b": float("nan"), 10: (1, 2.5), 9: {"größe": None}}
    sealed = sealed_json(fields)
    assert json.dumps(unsealed_json(sealed)) == json.dumps({"b": float("nan"), "10": [1, 2.5], "9": {"größe": None}})
    with pytest.raises(ValueError, match="its sha256 differs"):
        unsealed_json(sealed.replace(b"2.5", b"2.4"))
    for other in (b"[]", b"{}", b"x"):
        with pytest.raises(ValueError):  # noqa: PT011
            unsealed_json(other)


FLIPS = 1000


def test_a_thousand_flipped_bytes_are_refused_or_harmless(alone: Path, tmp_path: Path) -> None:
    """The state that a resume goes on from is one that the run had, with the lines that led to it, or there is none."""
    out = unfinished(alone, tmp_path / "flipped")
    checkpoint = alone / "checkpoint"
    states = {round: state_bits(load_round(checkpoint, round)[0]) for round in saved_rounds(checkpoint)}
    records = {round: load_round(checkpoint, round)[1] for round in states}
    lines = RunFolder(alone).read_lines(5)
    table = experiment_of().table
    files = sorted(file for file in out.rglob("*") if file.is_file() and file.stat().st_size)
    rng, refused, back = random.Random(5), 0, 0
    for number in range(FLIPS):
        file = files[number % len(files)]
        whole = file.read_bytes()
        flip(file, rng.randrange(len(whole)), rng.randrange(8))
        try:
            RunFolder(out).check_experiment()
            if file.name == "experiment.toml":
                assert read_experiment(str(file)).table == table, file.read_bytes()
            found = last_good(RunFolder(out))
        except InputError as error:
            said, found = str(error), None
        file.write_bytes(whole)
        if found is None:
            assert str(file) in said
            refused += 1
            continue
        assert state_bits(found.state) == states[found.state.round], file
        assert found.record == records[found.state.round], file
        assert found.lines == lines[: found.state.round], file
        assert found.back == bool(found.notes)
        back += found.back
    assert refused > FLIPS / 20  # all of experiment.toml, some of rounds.jsonl
    assert back > FLIPS / 10  # all of the last state's two files


# --------------------------------------------------------------------------------------------------------------- kills


def events_of(tell: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `tell` before everything that happens to files."""

    def wrapped(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            tell()
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    for owner, names in ((Path, ("mkdir", "replace", "rename", "unlink")), (os, ("fsync",)), (shutil, ("rmtree",))):
        for name in names:
            wrapped(owner, name)


KILLED = 9


def killed_at(event: int, run: Callable[[], object]) -> bool:
    """Run in a child that dies before its `event`th thing to files; return False where it came to its end."""
    pid = os.fork()
    if pid:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, KILLED), f"event {event}: status {status}"
        return status == KILLED
    try:
        seen = 0

        def tell() -> None:
            nonlocal seen
            seen += 1
            if seen == event:
                os._exit(KILLED)  # nothing is flushed, no `finally` runs: what a kill leaves

        with pytest.MonkeyPatch.context() as patching:
            events_of(tell, patching)
            run()
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)


def counting() -> Iterator[int]:
    yield from range(1, 500)


@pytest.mark.slow
def test_a_kill_at_every_fsync_rename_and_unlink_leaves_no_trace(alone: Path, tmp_path: Path) -> None:
    """Of a run with several states, and of one that goes back: each is resumed to the same bits."""
    expected, kills = outcome(alone), 0
    for event in counting():
        out = tmp_path / f"killed-{event}"
        if not killed_at(event, lambda out=out: run_small(out)):  # type: ignore[misc]
            break
        kills += 1
        run_small(out, resume=True)
        assert outcome(out) == expected, f"killed at event {event}"
        shutil.rmtree(out)
    for event in counting():
        out = tmp_path / f"back-{event}"
        shutil.copytree(alone, out)
        if not killed_at(event, lambda out=out: run_small(out, resume=True, from_round=3)):  # type: ignore[misc]
            break
        kills += 1
        run_small(out, resume=True)
        assert outcome(out) == expected, f"killed at event {event} of going back"
        shutil.rmtree(out)
    print(f"{kills} kills")
    assert kills >= 100


def test_states_are_those_of_the_rounds(alone: Path) -> None:
    """What the tests above hold against each other is a run: every state moves, and carries the guard's norms."""
    loaded = load_state(alone / "checkpoint")
    assert loaded is not None
    assert len(loaded[0].norms["both"]) == 10
    assert len({json.dumps(bias_of(load_round(alone / "checkpoint", round)[0])) for round in (3, 4, 5)}) == 3
