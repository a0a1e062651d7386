"""Strategies of a user's own, each one file in a folder outside the package, and what must come of their runs."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hellora.experiments import own_code

FOLDER = Path(__file__).with_name("own_strategies")
SGD = {"lr": 0.1, "batch_size": 8, "optimizer": "sgd", "weight_decay": 0.0, "epochs": 2}

# By name, what of an experiment names them: nothing else is changed anywhere.
OWN: dict[str, dict[str, Any]] = {
    "an allocator that uses reports": {"method": {"allocator": "loud_layers.py:LoudLayers", "forget": 0.9}},
    "FedProx": {"method": {"local_training": ["near.py:Near"], "pull": 0.5}},
    "SCAFFOLD": {"method": {"local_training": ["variates.py:Variates"]}, "train": SGD},
    "two rules": {"method": {"local_training": ["variates.py:Variates", "near.py:Near"]}, "train": SGD},
    "Krum": {"method": {"aggregator": "krum.py:Krum", "dishonest": 0}},
    "FedAdam": {"server": {"optimizer": "own_adam.py:OwnAdam", "step_size": 0.02}},
    "a sampler": {"method": {"sampler": "in_turn.py:InTurn"}},
}


def scratch(folder: Path) -> Path:
    """The files of the strategies in a folder of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in FOLDER.glob("*.py"):
        shutil.copy(file, folder)
    return folder


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """As if a command ran in this folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def allowing(table: dict[str, Any]) -> list[str]:
    """The words of a command line that allow the strategies that a table names."""
    return own_code.allowing(own_code.named_code(table))


def part(tensors: dict[str, Tensor], owner: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{owner}/"): t for name, t in tensors.items() if name.startswith(f"{owner}/")}


def same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit; nan is nan."""
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def assert_mean_of_variates(c: dict[str, Tensor], own: list[dict[str, Tensor]], clients: int) -> None:
    """c is the mean of the c_k of all clients; one that has kept nothing yet has c_k = 0."""
    assert c
    for name, tensor in c.items():
        total = sum((kept[name].double() for kept in own if name in kept), torch.zeros_like(tensor).double())
        torch.testing.assert_close(tensor.double(), total / clients, rtol=1e-5, atol=1e-7)
    assert any(tensor.any() for tensor in c.values())
