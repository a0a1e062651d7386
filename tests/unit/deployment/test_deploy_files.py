"""The files of examples/deploy: systemd takes the units, every command line in them is one of hellora's."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from hellora.cli.app import app

pytestmark = pytest.mark.flower
ROOT = Path(__file__).parents[3]
FILES = ROOT / "examples" / "deploy"
UNITS = sorted(FILES.glob("*.service"))


def check_command(words: list[str]) -> None:
    """Every option is one of the command's, and no argument is left over or absent; nothing is carried out."""
    name, *rest = words
    group: Any = typer.main.get_command(app)
    group.commands[name].make_context(f"hellora {name}", rest)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_command_of_a_unit_is_one(unit: Path) -> None:
    (line,) = re.findall(r"^ExecStart=\S+/hellora (.*)$", unit.read_text(), re.MULTILINE)
    check_command(shlex.split(line))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_takes_a_unit(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        problem = "needs systemd-analyze"
        pytest.fail(problem) if os.environ.get("CI") else pytest.skip(problem)
    text = unit.read_text().replace("/opt/hellora/bin/hellora", sys.executable).replace("User=hellora", "User=root")
    copy = tmp_path / unit.name
    copy.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if unit.name in line]
    assert ours == []


def test_the_commands_of_the_containers_are_some() -> None:
    services = yaml.safe_load((FILES / "compose.yaml").read_text())["services"]
    for service in services.values():
        check_command(service["command"])
        assert service["read_only"]
    port = next(word for word in services["server"]["command"] if word.startswith("--health-port="))[14:]
    assert f"127.0.0.1:{port}" in services["server"]["healthcheck"]["test"][-1]


def test_the_image_copies_what_there_is_and_starts_hellora() -> None:
    text = (FILES / "Containerfile").read_text()
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    assert text.rstrip().endswith('ENTRYPOINT ["hellora"]')
    assert "[flower]" in text
