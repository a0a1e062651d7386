"""A user's own strategy of any kind is one file, and no other line changes: in simulation, stopped and resumed."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from own import OWN, assert_mean_of_variates, part, same, scratch, working_in
from safetensors.torch import load_file

from hellora.experiments.config import check
from hellora.record.checkpoint import load_state
from hellora.runs.run import run_experiment

CLIENTS = 6


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path) -> Iterator[None]:
    with working_in(scratch(tmp_path / "scratch")):
        yield


class Stopping:
    """Progress that ends the run after some rounds, as Ctrl-C would."""

    def __init__(self, rounds: int) -> None:
        self.left = rounds

    def loading(self, *_: Any) -> None: ...
    def noted(self, *_: Any) -> None: ...
    def started(self, *_: Any) -> None: ...
    def head_solved(self, *_: Any) -> None: ...
    def round_started(self, *_: Any) -> None: ...
    def client_answered(self, *_: Any) -> None: ...

    def round_finished(self, *_: Any) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def run(table: dict[str, Any], out: Path, stop_after: int = 0) -> None:
    experiment = check("own", table)
    if stop_after:
        with pytest.raises(KeyboardInterrupt):
            run_experiment(experiment, out, Stopping(stop_after))
    run_experiment(experiment, out, Stopping(0), resume=stop_after > 0)


def tensors(out: Path) -> dict[str, Any]:
    return load_file(max((out / "checkpoint").glob("*.safetensors")))


@pytest.mark.parametrize("name", OWN)
def test_it_is_one_file_and_resumes_bit_identically(name: str, tmp_path: Path, small: Path) -> None:
    plainly = tomllib.loads(small.read_text())
    method = {"allocator": "everything", **OWN[name].get("method", {})}
    table = {**plainly, **OWN[name], "method": method, "wire": {"format": "bf16"}}
    run(table, tmp_path / "whole")
    run(table, tmp_path / "stopped", stop_after=2)
    one, other = tensors(tmp_path / "whole"), tensors(tmp_path / "stopped")
    assert one.keys() == other.keys()
    assert all(same(one[key], other[key]) for key in one)
    changes = {"method": {"allocator": "everything"}, "train": table["train"], "wire": table["wire"]}
    run({**plainly, **changes}, tmp_path / "plain")
    plain = tensors(tmp_path / "plain")
    assert any(not one[key].equal(plain[key]) for key in plain if key.startswith("adapter/")), "it changes nothing"


def test_c_is_the_mean_of_the_variates_after_every_round(tmp_path: Path, small: Path) -> None:
    """Clients train different layers, and not all take part in every round."""
    table = {**tomllib.loads(small.read_text()), **OWN["SCAFFOLD"], "wire": {"format": "int8"}}
    table["method"] = {**table["method"], "allocator": "random_layers"}
    for rounds in (1, 2, 3):
        run({**table, "rounds": rounds}, tmp_path / f"{rounds}")
        found = load_state(tmp_path / f"{rounds}" / "checkpoint")
        assert found is not None
        c = part(dict(found[0].strategies), "local_training/variates")
        assert_mean_of_variates(c, [part(dict(kept), "variates") for kept in found[0].kept.values()], CLIENTS)
