"""Which devices compute in bf16 by themselves."""

from pathlib import Path

import bases
import pytest
import torch

import hellora.client.evaluation
from hellora.client.evaluation import autocast
from hellora.core.errors import InputError
from hellora.experiments.config import check
from hellora.experiments.machine import arithmetic, workers
from hellora.model.bf16 import IN_CPUS, has_bf16
from hellora.model.settings import ModelSettings


@pytest.mark.parametrize("native", [False, True])
def test_a_cpu_has_bf16_where_one_of_its_instructions_is_there(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, answer in zip(IN_CPUS, (native, False), strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    assert has_bf16("cpu") == native
    assert not has_bf16("mps")
    assert check("x", {"model": {"dtype": "auto"}, "compute": {"device": "cpu"}}).table["model"]["dtype"] == (
        "bfloat16" if native else "float32"
    )


def test_a_cpu_of_which_torch_cannot_tell_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in IN_CPUS:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not has_bf16("cpu")


def test_a_model_outside_of_an_experiment_has_a_dtype_of_its_own() -> None:
    with pytest.raises(InputError, match="name a dtype"):
        _ = ModelSettings(dtype="auto").torch_dtype


@pytest.mark.parametrize(
    ("precision", "native", "word"),
    [
        ("fp32", False, ""),
        ("fp32", True, "float32; train.precision = auto would take bf16"),
        ("auto", False, "float32, for it has no bf16"),
        ("auto", True, "bf16 (train.precision = auto)"),
        ("bf16", False, "float32 is faster"),
        ("bf16", True, "bf16"),
    ],
)
def test_a_run_says_what_it_computes_in(
    precision: str, native: bool, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hellora.experiments.machine.has_bf16", lambda _: native)
    experiment = check("x", {"train": {"precision": precision}, "compute": {"device": "cpu"}})
    said = arithmetic(experiment)
    assert word in said
    assert bool(said) == bool(word)


def test_one_worker_per_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    count = {device: workers(check("x", {"compute": {"workers": 0, "device": device}})) for device in ("auto", "cpu")}
    assert count == {"auto": 4, "cpu": 1}
    assert workers(check("x", {"compute": {"workers": 3}})) == 3


def test_auto_is_bf16_where_the_device_has_it(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = bases.load(tiny_bert)
    for native in (False, True):
        monkeypatch.setattr(hellora.client.evaluation, "has_bf16", lambda _, native=native: native)
        with autocast(base, "auto"):
            assert torch.is_autocast_enabled("cpu") == native
