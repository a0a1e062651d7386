"""The tests of a group, which share a federation, run in one process. pytest 9.2 with pytest-xdist 3.8 spread them over
all processes without a word, and a federation was started in each."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = """
import os
import pathlib
import pytest

pytestmark = pytest.mark.xdist_group("federation")

@pytest.mark.parametrize("i", range(6))
def test_each(i):
    pathlib.Path(f"{os.getpid()}.ran").touch()
"""


def test_tests_of_a_group_run_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "test_group.py").write_text(TESTS)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "3", "--dist", "loadgroup", "--rootdir", tmp_path, tmp_path],
        cwd=tmp_path, env=environment, check=True,
    )  # fmt: skip
    assert len(list(tmp_path.glob("*.ran"))) == 1
