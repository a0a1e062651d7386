"""What `make` installs, and what it says of it."""

import subprocess

import pytest
import torch
from pages import ROOT

from hellora.experiments import machine


@pytest.mark.parametrize("target", ["install", "demo", "chat", "federation", "fast"])
def test_options_for_pip_reach_it(target: str) -> None:
    command = ["make", "--dry-run", "--always-make", target, "PIP_ARGS=--pre --no-cache-dir"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    installing = [line for line in lines if " pip " in line]
    assert len(installing) == 2
    assert all(" install --quiet --pre --no-cache-dir -c constraints.txt " in line for line in installing)
    assert any("torch_build()" in line for line in lines) == (target != "fast")


@pytest.mark.parametrize(
    ("cuda", "gpu", "said"),
    [
        (None, False, "torch 9.9, which computes on the CPU"),
        ("13.0", True, "torch 9.9, with CUDA 13.0, on An Accelerator"),
        ("13.0", False, "torch 9.9, with CUDA 13.0, and there is no GPU here; for the CPU build, much smaller: make "),
    ],
)
def test_the_build_of_torch_is_said(monkeypatch: pytest.MonkeyPatch, cuda: str | None, gpu: bool, said: str) -> None:
    monkeypatch.setattr(torch, "__version__", "9.9")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "An Accelerator")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert machine.torch_build().startswith(said)
