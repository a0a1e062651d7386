"""Code of a user's own: where it is found, and that it must be named by whoever runs it."""

import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from hellora.core.errors import InputError
from hellora.experiments.config import check, read_begun, read_experiment
from hellora.experiments.own_code import (
    REMOTE_CODE,
    absolute,
    allowing,
    load,
    named_code,
    refuse_unnamed_code,
    with_whole_paths,
)
from hellora.experiments.registry import find

MINE = '''
from hellora.methods.allocators.everything import Everything

class Mine(Everything):
    """Everyone, for our paper."""
'''
TRAP = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n" + MINE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_is_named_by_its_path_from_the_working_directory(folder: Path) -> None:
    (folder / "deep er").mkdir()
    (folder / "deep er" / "mine.py").write_text(MINE)
    found = find("allocator", "deep er/mine.py:Mine")
    assert found is find("allocator", f"{folder}/deep er/mine.py:Mine")
    assert found().name == "mine"


def test_a_file_takes_no_librarys_name_and_finds_its_neighbours(folder: Path) -> None:
    before = sys.modules["torch"]
    (folder / "torch.py").write_text(MINE)
    (folder / "more.py").write_text("from .torch import Mine\n\nclass More(Mine):\n    pass\n")
    assert find("allocator", "more.py:More").__mro__[1] is find("allocator", "torch.py:Mine")
    assert sys.modules["torch"] is before is torch


def test_files_of_one_name_in_two_folders_are_two(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "same.py").write_text(f"class Where:\n    place = {name!r}\n")
    assert [load(f"{name}/same.py:Where").place for name in ("a", "b")] == ["a", "b"]


def test_a_process_of_ours_finds_the_class_by_its_name(folder: Path) -> None:
    """As a worker does, which is sent rules of local training."""
    (folder / "mine.py").write_text("class Mine: pass")
    process = get_context("spawn").Process(target=id, args=(load("mine.py:Mine")(),))
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.py:Mine", "cannot be imported: ImportError: there is no file {folder}/absent.py"),
        ("v1.2.py:Mine", "cannot be imported: ImportError: v1.2 has a dot"),
        ("broken.py:Mine", "cannot be imported: ZeroDivisionError"),
        ("mine.py:Absent", "cannot be imported: ImportError: mine.py has no 'Absent': choose among Mine"),
        ("mine:Mine", "the working directory is not searched: write mine.py:Mine"),
    ],
)
def test_what_cannot_be_found_is_refused_in_words(folder: Path, name: str, words: str) -> None:
    (folder / "mine.py").write_text(MINE)
    (folder / "v1.2.py").write_text(MINE)
    (folder / "broken.py").write_text("1 / 0")
    with pytest.raises(InputError) as refusal:
        find("allocator", name)
    assert words.format(folder=folder) in str(refusal.value)


def test_the_working_directory_shadows_no_library(folder: Path) -> None:
    """Neither for the command nor for what it starts."""
    (folder / "numpy.py").write_text("raise SystemExit('shadowed')")
    (folder / "rich.py").write_text("raise SystemExit('shadowed')")
    answer = subprocess.run([sys.executable, "-m", "hellora", "--version"], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")


# ------------------------------------------------------------------------------------------------------------- allowing

TABLE = {
    "method": {"allocator": "a.py:A", "local_training": ["plain", "b.py:B"], "aggregator": "fedit"},
    "server": {"optimizer": "pkg.mod:C"},
    "task": {"name": "d:D"},
    "data": {"name": "not:code", "partitioner": "e.py:E"},
    "tracking": {"trackers": ["f.py:F", "tensorboard"]},
    "model": {"name": "also:not", "trust_remote_code": True},
}
NAMED = ["a.py:A", "b.py:B", "pkg.mod:C", "d:D", "e.py:E", "f.py:F", REMOTE_CODE]


def test_what_a_table_names() -> None:
    assert named_code(TABLE) == NAMED
    assert named_code({"model": {"trust_remote_code": False}, "method": {"sampler": "uniform"}}) == []


@pytest.mark.parametrize(
    "table",
    [
        {"method.allocator": "a.py:A"},  # settings
        {"method": {"allocator": ["a.py:A"]}},
        {"methods": {"x": {"method.allocator": "a.py:A"}}},  # comparisons
        {"settings": {"x": {"method": {"allocator": "a.py:A"}}}},
        {"experiment": {"method": {"allocator": "a.py:A"}}},
        {"tune": {"grid": {"method.allocator": ["everything", "a.py:A"]}}},
    ],
)
def test_it_is_found_wherever_it_may_be_written(table: dict[str, Any]) -> None:
    assert named_code(table) == ["a.py:A"]


def test_a_class_is_allowed_by_its_name_or_its_place_however_the_path_is_written(folder: Path) -> None:
    table = {"method": {"allocator": "a.py:A", "sampler": "a.py:B", "aggregator": "m:C"}}
    for allowed in (["a.py", "m"], ["a.py:A", "a.py:B", "m:C"], [f"{folder}/a.py", "m:C"], ["./a.py", "m"]):
        refuse_unnamed_code(table, allowed, "x")
    for allowed in ([], ["a.py:A", "m"], ["a", "m"], ["b/a.py", "m"], ["a.py"], [REMOTE_CODE]):
        with pytest.raises(InputError):
            refuse_unnamed_code(table, allowed, "x")


def test_the_refusal_prints_the_words_that_allow_it() -> None:
    with pytest.raises(InputError) as refusal:
        refuse_unnamed_code(TABLE, [], "x.toml")
    assert str(refusal.value) == (
        "x.toml names code that would run here with your rights (a.py:A, b.py:B, pkg.mod:C, d:D, e.py:E, f.py:F, "
        "remote-code): read it first; to let it run, add --allow a.py:A --allow b.py:B --allow d:D --allow e.py:E "
        "--allow f.py:F --allow pkg.mod:C --allow remote-code"
    )
    assert allowing(["a.py:A", "m:B", "a.py:C"]) == ["--allow", "a.py", "--allow", "m:B"]
    refuse_unnamed_code(TABLE, allowing(NAMED)[1::2], "x.toml")


def test_own_files_are_written_with_whole_paths(folder: Path) -> None:
    table = with_whole_paths({"method": {"sampler": "a.py:A", "local_training": ["b.py:B", "plain"]}, "seed": 1})
    assert table == {
        "method": {"sampler": f"{folder}/a.py:A", "local_training": [f"{folder}/b.py:B", "plain"]},
        "seed": 1,
    }
    assert absolute("m:A") == "m:A"
    assert absolute("a.py") == f"{folder}/a.py"


def test_a_simulated_experiment_names_its_files_from_everywhere_alike(folder: Path) -> None:
    (folder / "mine.py").write_text(MINE)
    table = {"method": {"allocator": "mine.py:Mine"}}
    assert check("x", table).table["method"]["allocator"] == f"{folder}/mine.py:Mine"
    assert check("x", table, simulated=False).table["method"]["allocator"] == "mine.py:Mine", "each side has its own"


@pytest.mark.parametrize(
    "text",
    [
        'method.allocator = "trap.py:Mine"',
        '"method.allocator" = "trap.py:Mine"\nbase = "quickstart"',
        'base = "below.toml"',
        "model.trust_remote_code = true",
        'tracking.trackers = ["trap.py:Mine"]',
    ],
)
def test_an_experiment_file_runs_no_code_unasked(folder: Path, text: str) -> None:
    (folder / "trap.py").write_text(TRAP)
    (folder / "below.toml").write_text('method.allocator = "trap.py:Mine"')
    (folder / "x.toml").write_text(text)
    with pytest.raises(InputError, match=r"names code that would run here .*add --allow (trap\.py:Mine|remote-code)$"):
        read_experiment("x.toml")
    with pytest.raises(InputError, match="names code"):
        read_experiment("x.toml", {"method.sampler": "uniform"})
    assert not (folder / "ran").exists()


def test_it_runs_when_it_is_allowed_or_set_by_oneself(folder: Path) -> None:
    (folder / "trap.py").write_text(TRAP)
    (folder / "x.toml").write_text('method.allocator = "trap.py:Mine"')
    assert read_experiment("x.toml", allow=["trap.py"]).method.allocator.name == "trap"
    assert read_experiment("quickstart", {"method.allocator": "trap.py:Mine"}).method.allocator.name == "trap"
    assert (folder / "ran").exists()


def test_a_runs_folder_names_code_too_but_nobody_else_makes_use_of_its_trackers(folder: Path) -> None:
    (folder / "trap.py").write_text(TRAP)
    file = folder / "experiment.toml"
    file.write_text('method.allocator = "trap.py:Mine"\ntracking.trackers = ["nowhere:Tracker"]')
    with pytest.raises(InputError, match=r"experiment.toml names code .*\(trap.py:Mine\)"):
        read_begun(file, ())
    assert not (folder / "ran").exists()
    assert read_begun(file, ["trap.py:Mine"]).method.allocator.name == "trap"
