"""Pages of docs/ that show code: it runs as it stands."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "your-own-strategy.md"


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the page's module in it."""
    code = PAGE.read_text().partition("```python\n")[2].partition("```")[0]
    (tmp_path / "my_strategies.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "my_strategies", raising=False)
    return tmp_path


def test_the_strategies_of_the_page_run(hellora: Callable[..., Any], small: Path, written: Path) -> None:
    commands = PAGE.read_text().partition("```console\n$ ")[2].partition("```")[0].strip().split("\n$ ")
    plan, run = (shlex.split(command)[3:] for command in commands)  # without `hellora run quickstart`
    assert hellora("plan", small, *plan).status == 0
    out = written / "out"
    answer = hellora("run", small, *run, "--set", "fleet.layers=[1, 2, 3]", "--out", out)
    assert answer.status == 0, answer.err
    lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    for line in lines:  # capacity 1, 2 or 3 of 4 layers, from layer `round` on, around the end
        for ranks in line["ranks"].values():
            window = (line["round"] + np.arange(np.count_nonzero(ranks))) % 4
            assert np.flatnonzero(ranks).tolist() == sorted(window.tolist())
    assert 'allocator = "my_strategies:RollingWindow"' in (out / "experiment.toml").read_text()
    assert "reach = 0.05" in (out / "experiment.toml").read_text()
    for line in lines:  # of 4 bytes each: query and value of every trained layer, (32 + 32) × rank 4; the head of 99
        layers = sum(map(np.count_nonzero, line["ranks"].values()))
        assert line["downlink_bytes"] == 4 * (layers * 2 * 64 * 4 + len(line["ranks"]) * 99)
