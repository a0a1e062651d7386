"""The benchmark for a GPU runs on a tiny model, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.slow  # three processes that load libraries
def test_every_part_is_measured_on_both_sides(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(GPU), "--tiny", "--device", "cpu", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    timed = {"step, every layer", "step, few layers", "evaluation", "generation", "aggregation"}
    assert timed <= found["ratios"].keys()
    assert found["tiny"]
    assert "never measured" in done.stdout
    if sys.platform == "linux":
        assert found["ratios"]["peak bytes of a step / promised"] > 0
