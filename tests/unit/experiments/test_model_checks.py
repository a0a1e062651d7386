"""What a model does not bear is refused before a run, in a line that says what to change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bases
import pytest
import tiny_models
import torch
from architectures import base_of, batch_of
from torch import Tensor, nn

from hellora.core.errors import InputError
from hellora.core.exchange import Policy
from hellora.core.types import AdapterSpec, ModuleSpec
from hellora.experiments.model_checks import bypass_check, recompute_check, targets_check
from hellora.model.resident import BaseModel
from hellora.tasks import Batch, Encoded
from hellora.tasks.sequence_classification import SequenceClassification


class Ready(SequenceClassification):
    """The one batch of this task is made already."""

    def encode(self, base: BaseModel, rows: Any) -> Encoded:
        return Encoded([{}] * 2)

    def collate(self, base: BaseModel, examples: Any) -> Batch:
        batch = batch_of(SequenceClassification(), base)
        return {**batch, "input_ids": batch["input_ids"].clamp(max=30)}


class Counts(nn.Module):
    """A block that cannot be run again: it computes something else each time."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.runs = nn.Linear(32, 32), 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return torch.relu(self.lin(x)) if self.runs % 2 else self.lin(x)


class Reads(nn.Module):
    """A block that reads a weight past its module."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.lin.weight.mT


def of_blocks(make: Callable[[], nn.Module]) -> BaseModel:
    """A model of two such blocks, with embeddings of its own."""
    _, base = base_of("bert")
    layers = base.net.encoder.layer
    for j in range(2):
        layers[j].intermediate, layers[j].output = make(), nn.Identity()
        layers[j].output.forward = lambda x, *_: x
    modules = tuple(ModuleSpec(f"encoder.layer.{j}.intermediate.lin", j, 32, 32) for j in range(2))
    base.spec = AdapterSpec(modules, base.spec.layers, 2, 1.0)
    base.net.requires_grad_(False)
    return base


def test_blocks_that_cannot_be_run_again() -> None:
    base = of_blocks(Counts)
    with pytest.raises(InputError, match=r"policy\.use: recompute_all does not work with this model \(CheckpointError"):
        recompute_check(base, Ready(), None, Policy("all"))
    recompute_check(base, Ready(), None, Policy())
    recompute_check(base_of("bart")[1], Ready(), None, Policy("frozen"))


def test_a_weight_that_is_read_and_a_module_that_is_not_called() -> None:
    with pytest.raises(InputError, match=r"model\.targets: this model reads the weight of encoder\.layer\.0\.\S+lin"):
        targets_check(of_blocks(Reads), Ready(), None)
    targets_check(of_blocks(Counts), Ready(), None)
    targets_check(base_of("deberta-v2")[1], Ready(), None)


def test_blocks_that_hand_on_more_than_hidden_states(tmp_path: Path) -> None:
    """T5's first block makes the position bias of all others; DeBERTa's hand on nothing, Swin's what nobody reads."""
    bypass_check(base_of("deberta-v2")[1], Ready(), None)
    own = Ready(head_type="own")
    with pytest.raises(InputError, match=r"leaves blocks out, and this model's hand each other .*block\.0 does"):
        bypass_check(bases.load(tiny_models.save_t5(tmp_path), own), own, None)
