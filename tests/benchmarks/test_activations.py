"""The benchmark of activations on a narrow model: its gates, and what it counts."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "activations.py"


@pytest.fixture(scope="module")
def activations() -> ModuleType:
    spec = importlib.util.spec_from_file_location("activations", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_gate_is_met_on_a_narrow_model(activations: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert activations.main(["--check", "--width", "64", "--batch", "1", "--repeat", "0"]) == 0
    table = capsys.readouterr().out
    assert table.count(" ok") == 10
    assert "MISSED" not in table


def test_what_is_alive_is_counted_once_and_nothing_else(activations: ModuleType) -> None:
    x, weight = torch.randn(8, 4), torch.nn.Parameter(torch.randn(4, 4))
    with activations.MadeAndAlive([x, weight]) as made:
        y = x @ weight  # 128 bytes; the view of the weight, and the storage of what is let go, are none
        z = y.view(-1).sin()[3:]  # 128 bytes, all of the storage
        kept = [weight.mT, y.mT, (y + 1).sum()]  # 4 bytes
        del y
    assert made.num_bytes == 128 + 128 + 4
    del z
    assert made.num_bytes == 128 + 4
    del kept
    assert made.num_bytes == 0
