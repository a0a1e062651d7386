"""examples/own_flower_app.py: somebody's own Flower app, in which hellora decides who trains what."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tiny_models
import torch
from datasets import Dataset
from fake_grid import FakeGrid
from flwr.app import Context, RecordDict
from pages import ROOT

EXAMPLE = ROOT / "examples" / "own_flower_app.py"
pytestmark = pytest.mark.flower


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The example with a tiny model and a few sentences."""
    spec = importlib.util.spec_from_file_location("own_flower_app", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    bert = tiny_models.save_bert(tmp_path / "bert", num_hidden_layers=6)
    rows = Dataset.from_list([{"text": text, "label": len(text) % 20} for text, _ in tiny_models.sentences(600)])
    monkeypatch.setattr(module, "resolve_name", lambda _: str(bert))
    monkeypatch.setattr(module, "docstrings", lambda: {"train": rows, "test": rows})
    return module


def test_the_example_trains_each_client_within_its_layers(
    example: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    nodes = range(60, 60 + example.CLIENTS)
    grid = FakeGrid({node: {"partition-id": node - 60, "num-partitions": len(nodes)} for node in nodes}, example.client)
    example.server(grid, Context(1, 0, {}, RecordDict(), {}))
    out = capsys.readouterr().out
    assert re.findall(r"^after round (\d): accuracy [01]\.\d{3}$", out, re.MULTILINE) == ["0", "1", "2"]
    asked = [message for message in grid.asked if message.metadata.message_type == "train"]
    assert len(asked) == 2 * 4
    for message in asked:
        names = message.content.config_records["config"]["train"]
        layers = {found[1] for name in names if (found := re.search(r"\.layer\.(\d+)\.", name))}
        assert len(layers) == example.LAYERS[(message.metadata.dst_node_id - 60) % 3]


@pytest.mark.slow
@pytest.mark.xdist_group("simulation")
def test_the_example_runs_on_flowers_simulation() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "FLWR_TELEMETRY_ENABLED": "0"}
    ran = subprocess.run(
        [sys.executable, str(EXAMPLE)], env=environment, capture_output=True, text=True, timeout=1200, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    accuracy = [float(found) for found in re.findall(r"^after round \d: accuracy (\S+)$", ran.stdout, re.MULTILINE)]
    assert len(accuracy) == 3
    assert accuracy[-1] > accuracy[0] + 0.1
