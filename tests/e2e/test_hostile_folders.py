"""Folders and files of a stranger's: opening them runs none of their code, and says in one line what to do."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from refusals import check_refusal
from safetensors.torch import load_file

Command = Callable[..., Any]
TRAP = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
from hellora.methods.allocators.everything import Everything as Allocator
from hellora.tasks.sequence_classification import SequenceClassification as Task
from transformers import BertConfig, BertModel


class Config(BertConfig):  # of its own: transformers marks what it loads this way as no model of its own
    pass


class Model(BertModel):
    config_class = Config
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module that must not run."""
    (tmp_path / "trap.py").write_text(TRAP)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(folder: Path) -> bool:
    return any(folder.rglob("ran"))


def adapter(folder: Path, task: str = "sequence_classification", **model: Any) -> Path:
    """An exported adapter, as far as it is read before the base is loaded."""
    usage = {
        "format": 1, "merged": False, "labels": ["a", "b"], "base": {},
        "task": {"name": task}, "model": {"rank": 2, **model}, "data": {}, "train": {}, "compute": {},
    }  # fmt: skip
    (folder / "adapter").mkdir()
    (folder / "adapter" / "hellora.json").write_text(json.dumps(usage))
    return folder / "adapter"


def with_code(model: Path, folder: Path) -> Path:
    """A model folder whose config.json names classes in a file beside it."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(TRAP.replace("__file__", repr(str(folder / "own.py"))))
    return folder


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_an_adapter_folder_that_names_a_task_of_its_own(hellora: Command, folder: Path, command: str) -> None:
    answer = hellora(command, adapter(folder, task="trap.py:Task"), "x.csv")
    check_refusal(answer, "adapter/hellora.json names code that would run here", "add --allow trap.py:Task\n")
    assert not ran(folder)


def test_an_adapter_folder_that_lets_its_base_run_code(hellora: Command, folder: Path, tiny_bert: Path) -> None:
    hostile = adapter(folder, name=str(with_code(tiny_bert, folder / "model")), trust_remote_code=True)
    check_refusal(hellora("predict", hostile, "x.csv"), "(remote-code)", "add --allow remote-code\n")
    assert not ran(folder)
    for allowed in (["--allow", "remote-code"], ["--set", "model.trust_remote_code=true"]):
        assert "remote-code" not in hellora("predict", hostile, "x.csv", *allowed).err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "x.toml", "--out", "out"],
        ["run", "x.toml", "--out", "out", "--backend", "flower"],
        ["run", "x.toml", "--out", "out", "--federation", "state"],
        ["plan", "x.toml"],
        ["compare", "x.toml", "--method", "a=method.sampler=uniform", "--out", "out"],
        ["compare", "quickstart", "--method", "a=preset=x.toml", "--out", "out"],
        ["run", "above.toml", "--out", "out"],
    ],
    ids=" ".join,
)
def test_an_experiment_file(hellora: Command, folder: Path, arguments: list[str]) -> None:
    (folder / "x.toml").write_text('base = "quickstart"\nmethod.allocator = "trap.py:Allocator"')
    (folder / "above.toml").write_text('base = "x.toml"')
    check_refusal(hellora(*arguments), "x.toml names code that would run here", "add --allow trap.py:Allocator\n")
    assert not ran(folder)
    assert not (folder / "out").exists()


def test_a_comparisons_file(hellora: Command, folder: Path) -> None:
    of_method, swept = {"method.allocator": "trap.py:Allocator"}, {"method.allocator": ["trap.py:Allocator"]}
    for table in ({"methods": {"a": of_method}}, {"methods": {"a": {}}, "sweep": swept}):
        (folder / "x.toml").write_text(tomli_w.dumps({"base": "quickstart", **table}))
        answer = hellora("compare", "x.toml", "--out", "out")
        check_refusal(answer, "x.toml names code", "add --allow trap.py:Allocator\n")
        assert not ran(folder)


@pytest.mark.parametrize(
    "arguments", [["predict", "theirs", "x.csv"], ["export", "theirs"], ["evaluate", "theirs", "x"]]
)
def test_a_runs_folder(hellora: Command, folder: Path, arguments: list[str]) -> None:
    (folder / "theirs").mkdir()
    (folder / "theirs" / "experiment.toml").write_text('method.allocator = "trap.py:Allocator"')
    check_refusal(
        hellora(*arguments), "experiment.toml names code that would run here", "add --allow trap.py:Allocator\n"
    )
    assert not ran(folder)


def test_a_runs_folder_that_one_goes_on_with(hellora: Command, folder: Path, small: Path) -> None:
    """What lies in it is not taken for what was asked for."""
    (folder / "theirs").mkdir()
    (folder / "theirs" / "experiment.toml").write_text('method.allocator = "trap.py:Allocator"')
    answer = hellora("run", small, "--out", "theirs", "--resume")
    check_refusal(answer, "it is another experiment than is to run: choose another --out")
    assert not ran(folder)


# ------------------------------------------------------------------------------------------------------- model folders


def test_a_model_folder_with_code(hellora: Command, folder: Path, small: Path, tiny_bert: Path) -> None:
    model = with_code(tiny_bert, folder / "model")
    answer = hellora("run", small, "--set", f"model.name={model}", "--out", "out")
    check_refusal(answer, "brings code of its own: read it first", "--set model.trust_remote_code=true")
    assert not ran(folder)


class Pickled:
    """Runs a command when it is read back."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


def test_a_model_folder_with_pickled_weights(hellora: Command, folder: Path, small: Path, tiny_bert: Path) -> None:
    model = folder / "model"
    shutil.copytree(tiny_bert, model)
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    arguments = ["run", small, "--set", f"model.name={model}", "--set", "rounds=1"]
    torch.save({**weights, "more": Pickled(folder / "ran")}, model / "pytorch_model.bin")  # noqa: TID251
    check_refusal(hellora(*arguments, "--out", "out"), "are a pickle (.bin) with more in it than tensors", "convert")
    assert not ran(folder)
    torch.save(weights, model / "pytorch_model.bin")  # noqa: TID251  of tensors alone it is harmless
    assert hellora(*arguments, "--out", "out").status == 0


def test_a_model_folder_that_names_a_kernel(hellora: Command, folder: Path, small: Path, tiny_bert: Path) -> None:
    model = folder / "model"
    shutil.copytree(tiny_bert, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "attn_implementation": "somebody/kernel"}))
    answer = hellora("run", small, "--set", f"model.name={model}", "--out", "out")
    check_refusal(answer, "names code to be fetched and run, attn_implementation = 'somebody/kernel': remove it there")
