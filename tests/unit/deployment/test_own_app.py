"""A client's messages go to the app that is installed there; what comes with a run is not carried out."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hellora.deployment.client_process import Client
from hellora.deployment.flower_tools import Address
from hellora.deployment.own_app import OTHERS, PROGRAM, pin, write_programs

pytestmark = pytest.mark.flower

EVIL = """
import pathlib
pathlib.Path("done").touch()
client = "theirs"
"""


def test_a_bundle_is_neither_unpacked_nor_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supernode.runtime import run_clientapp as runtime

    for name in ("install_from_fab", "get_load_client_app_fn"):  # put back at the end
        monkeypatch.setattr(runtime, name, getattr(runtime, name))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(EVIL)
    pin("ours")
    assert runtime.install_from_fab(b"no bundle at all", skip_prompt=True) is None
    load = runtime.get_load_client_app_fn(default_app_ref="evil:client", app_path=str(tmp_path), multi_app=True)
    assert load("evil", "1", "hash") == "ours"
    assert not (tmp_path / "done").exists()


def test_a_flower_that_loads_bundles_in_another_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supernode.runtime import run_clientapp as runtime

    monkeypatch.delattr(runtime, "install_from_fab")
    with pytest.raises(RuntimeError, match="loads apps in another way"):
        pin("ours")


def test_processes_of_the_supernode_find_it_in_the_place_of_flowers(tmp_path: Path) -> None:
    me = Client(Address("server", 8443, None), "clinic", None, {}, {}, "cpu", None, tmp_path / "a client's folder")
    environment = me.node_environment()
    found = shutil.which(PROGRAM, path=environment["PATH"])
    assert found == str(tmp_path / "a client's folder" / "bin" / PROGRAM)
    root = str(Path(__file__).parents[3])
    path = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    done = subprocess.run([found, "--help"], env={**environment, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--token" in done.stdout
    assert sys.executable in Path(found).read_text()


def test_a_run_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Flower's agents, for one, would carry out what is in the bundle, too."""
    from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

    assert sorted(TASK_TYPE_TO_COMMAND.values()) == sorted((PROGRAM, *OTHERS))
    folder = write_programs(tmp_path / "bin")
    for name in OTHERS:
        done = subprocess.run([folder / name, "--token", "x"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (1, "refused: a hellora client runs nothing but its own app\n")
