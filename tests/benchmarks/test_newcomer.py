"""The newcomer's clock: it reads the quickstart's own commands, carries them out in order, and stops at a failure."""

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "newcomer.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("newcomer_benchmark", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_path_of_the_quickstart_takes_at_most_three_commands(benchmark: ModuleType) -> None:
    shown = [benchmark.commands(benchmark.PAGE.read_text(), title) for title in benchmark.PATHS]
    assert [lines[0] for lines in shown] == ["git clone REPOSITORY hellora"] * 3
    assert [len(lines) for lines in shown] == [3, 3, 3]
    assert shown[0][1:] == ["cd hellora", "make demo"]
    assert all(lines[1] == "make -C hellora install" and " run quickstart --set " in lines[2] for lines in shown[1:])
    assert all("\\" not in line for lines in shown for line in lines), "continued lines are one command"


@pytest.fixture
def repository(tmp_path: Path) -> str:
    """A repository with a Makefile whose `demo` writes where it is, and whose `broken` fails."""
    folder = tmp_path / "origin"
    folder.mkdir()
    (folder / "Makefile").write_text("demo:\n\t@pwd > here; env > env\nbroken:\n\t@echo no room left; exit 1\n")
    git = ("git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org")
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "first")):
        subprocess.run([*git, *words], check=True)
    return str(folder)


def test_commands_are_carried_out_in_order_from_an_empty_folder(
    benchmark: ModuleType, repository: str, tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    lines = ["git clone REPOSITORY hellora", "cd hellora", "make demo"]
    results = list(benchmark.followed("See it work", lines, repository, folder, cached=False))
    assert [result.command for result in results] == lines
    assert all(result.seconds > 0 for result in results if result.command != "cd hellora")
    assert (folder / "hellora" / "here").read_text().strip() == str(folder / "hellora")
    environment = (folder / "hellora" / "env").read_text().splitlines()
    assert {"PIP_NO_CACHE_DIR=1", "HF_HUB_OFFLINE=1", f"HF_HOME={folder / 'huggingface'}"} <= set(environment)
    assert not any(line.startswith(("PYTHONPATH=", "VIRTUAL_ENV=")) for line in environment)


def test_a_command_that_fails_ends_it_with_what_it_said(benchmark: ModuleType, repository: str, tmp_path: Path) -> None:
    lines = ["git clone REPOSITORY hellora", "make -C hellora broken", "cd nowhere"]
    with pytest.raises(SystemExit, match=r"'make -C hellora broken' ended with status 2:\n(.*\n)*no room left"):
        list(benchmark.followed("path", lines, repository, tmp_path, cached=True))


def test_the_table_has_the_sum_of_every_path(benchmark: ModuleType) -> None:
    rows = benchmark.table(
        [benchmark.Timed("a", "x", 1.4), benchmark.Timed("a", "y", 2.4), benchmark.Timed("b", "x", 5.0)]
    )
    assert rows.splitlines()[2:] == [
        "| a | `x` | 1 |",
        "| a | `y` | 2 |",
        "| | in all | 4 |",
        "| b | `x` | 5 |",
        "| | in all | 5 |",
    ]
