"""AdamW with states of 8 bits: near AdamW, in as many bytes as a plan says, and refused where it is not to be had."""

import importlib.util
from pathlib import Path
from typing import Any

import bases
import numpy as np
import pytest
import tiny_models
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import hellora.client.train
from hellora.budgets.optimizer_states import TABLES, states_in_8_bits, stepping_bytes
from hellora.client.eight_bit import adamw_8bit, check_eight_bit
from hellora.client.train import make_optimizer, train_client
from hellora.client.work import ClientWork
from hellora.core.errors import InputError
from hellora.core.exchange import TrainSettings
from hellora.experiments.config import check
from hellora.tasks.causal_lm import CausalLM

pytestmark = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs hellora[quantized]")
SETTINGS = TrainSettings(lr=1e-2, optimizer="adamw_8bit", weight_decay=0.1)


def stepped(settings: TrainSettings, shape: tuple[int, ...], steps: int) -> tuple[torch.Tensor, torch.optim.Optimizer]:
    """A parameter pulled towards a target, after some steps."""
    rng = torch.Generator().manual_seed(0)
    start, target = torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)
    parameter = nn.Parameter(start.clone())
    optimizer = make_optimizer([parameter], settings)
    for _ in range(steps):
        parameter.grad = parameter.detach() - target
        optimizer.step()
        optimizer.zero_grad()
    return parameter.detach() - start, optimizer


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of all tensors that it holds, each once."""
    held = {t.data_ptr(): t.nbytes for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)}
    return sum(held.values())


@pytest.mark.parametrize(("shape", "most"), [((63, 65), 1e-6), ((64, 64), 0.1), ((100, 1000), 0.1)])
def test_it_goes_where_adamw_goes(shape: tuple[int, int], most: float) -> None:
    """Within a tenth of the way; a tensor of fewer than 4096 numbers goes the same way."""
    moved, _ = stepped(SETTINGS, shape, steps=20)
    exact, _ = stepped(TrainSettings(lr=1e-2, weight_decay=0.1), shape, steps=20)
    assert (moved - exact).norm() / exact.norm() < most
    assert (moved - exact).norm() / exact.norm() > 0.1 * most * (most > 1e-3)


@pytest.mark.parametrize("shape", [(4095,), (64, 64), (100, 1000), (4097,), (2, 3)])
def test_its_states_take_the_bytes_that_are_counted(shape: tuple[int, ...]) -> None:
    _, optimizer = stepped(SETTINGS, shape, steps=1)
    assert state_bytes(optimizer) == states_in_8_bits([int(np.prod(shape))])


def test_bytes_by_hand() -> None:
    """A byte for each number and state, a scale for 256 of them; 4 for each of a small tensor's; two tables once."""
    assert states_in_8_bits([]) == 0
    assert states_in_8_bits([10, 4095]) == 2 * 4 * 4105
    assert states_in_8_bits([4097, 10, 5120]) == 2 * (4097 + 5120 + 4 * (17 + 20) + 4 * 10) + TABLES
    assert stepping_bytes([7, 100], in_8_bits=False) == 2 * 4 * 100
    assert stepping_bytes([7, 100], in_8_bits=True) == 5 * 4 * 100
    assert stepping_bytes([], in_8_bits=True) == 0


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_a_step_holds_no_more_for_a_moment_than_is_counted(optimizer: Any) -> None:
    parameter = nn.Parameter(torch.zeros(100, 1000))
    stepping = make_optimizer([parameter], TrainSettings(optimizer=optimizer))
    parameter.grad = torch.ones_like(parameter)
    stepping.step()  # its states come to be
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as allocations:
        stepping.step()
    assert allocations.profiler is not None
    events = allocations.profiler.kineto_results.events()  # inside of bitsandbytes' operations, too
    held = np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"])
    counted = stepping_bytes([parameter.numel()], optimizer == "adamw_8bit")
    assert 0.7 * counted < held.max() <= 1.01 * counted


def test_a_client_trains_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs, and embeddings that are large enough for states of 8 bits."""
    folder, kind = tiny_models.save_llama(tmp_path, vocab_size=200), CausalLM()
    base = bases.load(folder, kind, modules_to_save=("embed_tokens",))
    made: list[torch.optim.Optimizer] = []
    make = hellora.client.train.make_optimizer

    def kept(*given: Any) -> torch.optim.Optimizer:
        made.append(make(*given))
        return made[-1]

    monkeypatch.setattr(hellora.client.train, "make_optimizer", kept)
    rows = bases.instructions(["we saw the boat"] * 8, ["a wave is near"] * 8)
    how: dict[str, Any] = {"optimizer": "adamw_8bit", "lr": 1e-2, "schedule": "linear", "epochs": 4}
    task = bases.task_of(base, [0, 1, 2], **how)
    update = train_client(task, base, kind, rows)
    again = train_client(task, base, kind, rows)
    before = train_client(bases.task_of(base, [0, 1, 2], lr=1e-12), base, kind, rows)
    assert update.metrics["loss"] < before.metrics["loss"] - 0.05
    assert all(torch.equal(t, again.adapter.tensors()[name]) for name, t in update.adapter.tensors().items())
    assert {state["state1"].dtype for state in made[0].state.values()} == {torch.uint8, torch.float32}


def test_it_is_loaded_before_memory_is_measured(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def noted(parameters: Any, settings: TrainSettings) -> torch.optim.Optimizer:
        made.append(settings.optimizer)
        return make_optimizer(parameters, settings)

    monkeypatch.setattr("hellora.client.work.make_optimizer", noted)
    ClientWork(bases.load(tiny_llama, CausalLM()), CausalLM(), None, (), settings=SETTINGS).warm_up()
    assert made == ["adamw_8bit"]


@pytest.mark.parametrize("device", ["mps", "hpu"])
def test_other_devices_are_named(device: str) -> None:
    with pytest.raises(InputError, match=f"train.optimizer = 'adamw_8bit' is not to be had on {device}, but on cuda"):
        check_eight_bit(SETTINGS, device)
    check_eight_bit(SETTINGS, "cuda")
    check_eight_bit(TrainSettings(), device)


def test_without_bitsandbytes_it_is_refused_before_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"train": {"optimizer": "adamw_8bit"}, "compute": {"device": "cpu"}}
    check("any", table)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"'adamw_8bit' needs bitsandbytes: pip install 'hellora\[quantized\]'"):
        check("any", table)
    check("any", table, simulated=False)
    with pytest.raises(InputError, match="needs bitsandbytes"):
        adamw_8bit([nn.Parameter(torch.zeros(1))], SETTINGS)
