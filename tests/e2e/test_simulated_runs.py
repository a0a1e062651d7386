"""Runs on Flower's simulation engine: the same bits as in this process. More methods and tasks meet on a grid without
the engine, in tests/parity."""

from pathlib import Path
from typing import Any

import every_task
import pytest
from federation_site import METHODS, Site, by_client, hellora, same_bits, site_in, tensors

pytestmark = [pytest.mark.slow, pytest.mark.flower, pytest.mark.xdist_group("simulation")]


def assert_the_same_bits(site: Site, **changes: Any) -> None:
    out, log = site.folder / "out", site.folder / "log"
    plain = site.experiment(site.folder / "whole", **changes)
    path = site.write(
        "simulated", site.experiment(site.folder / "whole", fleet=by_client(plain, site.clients), **changes)
    )
    assert hellora("run", path, "--backend", "flower", "--out", out, folder=site.folder, log=log).wait() == 0
    assert same_bits(tensors(out), site.replay("out", [], **changes))
    assert "Warning" not in log.read_text()


@pytest.mark.parametrize("method", ["fed_hello", "solved_head"])
def test_flowers_simulation_ends_with_the_same_bits(tmp_path: Path, method: str) -> None:
    assert_the_same_bits(site_in(tmp_path), method=METHODS[method])


@pytest.mark.parametrize("case", ["packed", "words"])
def test_flowers_simulation_takes_other_tasks(tmp_path: Path, case: str) -> None:
    assert_the_same_bits(every_task.site_in(tmp_path), **every_task.changes(case, tmp_path))
