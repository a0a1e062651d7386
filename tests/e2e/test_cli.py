"""The command line itself: help, examples, errors in one form, completion, and that it starts without heavy imports."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from refusals import check_refusal

from hellora import __version__
from hellora.cli.app import app
from hellora.cli.help import BELOW, EXAMPLES
from hellora.experiments.presets import presets

Command = Callable[..., Any]
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_without_arguments_it_shows_its_help(hellora: Command) -> None:
    bare, asked = hellora(), hellora("--help")
    assert (bare.status, bare.err) == (0, "")
    assert bare.out == asked.out
    assert all(re.search(rf"^  {command} ", bare.out, re.MULTILINE) for command in COMMANDS)
    assert "Example:\n    hellora run quickstart\n" in bare.out
    commands = bare.out.partition("Commands:")[2]
    assert "..." not in commands, "each is summed up in a line"
    assert re.findall(r"^  (\w+) ", commands, re.MULTILINE) == list(EXAMPLES)


def test_the_version(hellora: Command) -> None:
    assert hellora("--version").out == f"hellora {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_ends_with_an_example_of_it(hellora: Command, command: str) -> None:
    answer = hellora(command, "--help")
    assert answer.status == 0
    assert "\\[" not in answer.out
    (example,) = re.findall(r"Example:\n +(hellora .*)\n", answer.out)
    words = shlex.split(example)
    assert words[1] == command
    options = {word for word in words if word.startswith("--")}
    assert all(re.search(rf"^  {option}\b", answer.out, re.MULTILINE) for option in options), "it can be typed"


@pytest.mark.parametrize(("command", "below"), [(name, word) for name, words in BELOW.items() for word in words])
def test_so_does_that_of_every_command_below_one(hellora: Command, command: str, below: str) -> None:
    answer = hellora(command, below, "--help")
    assert answer.status == 0
    assert f"Example:\n    {BELOW[command][below]}\n" in answer.out
    assert f"\n  {below} " in hellora(command, "--help").out


@pytest.mark.parametrize(
    ("arguments", "words", "command"),
    [
        (["run"], "missing argument 'PRESET_OR_FILE'", "hellora run"),
        (["rnu"], "no such command 'rnu'", "hellora"),
        (["--nothing"], "no such option", "hellora"),
        (["plan", "--round", "two"], "invalid value for '--round': 'two' is not a valid integer", "hellora plan"),
        (["run", "a", "b"], "got unexpected extra argument (b)", "hellora run"),
        (["client", "export", "x"], "missing argument 'OUT'", "hellora client export"),
        (["evaluate", "x"], "missing argument 'FILE'", "hellora evaluate"),
        (["run", "quickstart", "--set"], "'--set' requires an argument", "hellora"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line(
    hellora: Command, arguments: list[str], words: str, command: str
) -> None:
    """What and where are click's words; what to do is ours."""
    answer = hellora(*arguments)
    check_refusal(answer, words)
    assert answer.err.startswith(f"error: {command}: ")
    assert answer.err.lower().endswith((f": see `{command} --help`\n", f"? see `{command} --help`\n"))
    assert answer.err.count("Did you mean") <= 1
    assert answer.out == ""


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["quickstart"], "no such command 'quickstart': write hellora run quickstart"),
        (["run", "quickstart", "data.name=my.csv"], "(data.name=my.csv): write --set data.name=…"),
        (["run", "quickstart", "--data.name=my.csv"], "no such option '--data.name': write --set data.name=…"),
        (["run", "quickstart", "--set", "task=causal_lm"], "or --set task.name=causal_lm"),
    ],
)
def test_a_slip_is_answered_with_the_right_words(hellora: Command, arguments: list[str], advice: str) -> None:
    check_refusal(hellora(*arguments), advice)


def complete(words: str, folder: Path) -> list[str]:
    """What bash is estimated for the last word."""
    path = os.pathsep.join(part for part in sys.path if part)
    asked = {"_HELLORA_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    code = "import sys; from hellora.cli.app import main; main(); assert False"
    answer = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked, "PYTHONPATH": path}, cwd=folder,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return answer.stdout.split()


def test_the_shell_completes_presets_files_and_commands(tmp_path: Path) -> None:
    (tmp_path / "fedora.toml").touch()
    (tmp_path / "fedora.txt").touch()
    (tmp_path / "federations").mkdir()
    expected = [name for name in presets() if name.startswith("fed")]
    assert len(expected) > 3
    assert complete("hellora run fed", tmp_path) == [*expected, "federations/", "fedora.toml"]
    assert complete("hellora ev", tmp_path) == ["evaluate"]


def test_a_script_for_completion_is_shown() -> None:
    path = os.pathsep.join(part for part in sys.path if part)
    environment = {**os.environ, "PYTHONPATH": path, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    answer = subprocess.run(
        [sys.executable, "-m", "hellora", "--show-completion", "bash"], env=environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "_HELLORA_COMPLETE=complete_bash" in answer.stdout


def test_the_package_and_its_commands_import_nothing_heavy() -> None:
    path = os.pathsep.join(part for part in sys.path if part)
    code = (
        "import sys, hellora.cli.app; "
        "print([name for name in ('torch', 'transformers', 'datasets', 'flwr', 'accelerate') if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert answer.stdout == "[]\n"
