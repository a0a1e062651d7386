"""Runs on Flower's simulation engine: the same bits as in this process."""

from pathlib import Path

import pytest
from federation_site import METHODS, by_client, hellora, same_bits, site_in, tensors

pytestmark = [pytest.mark.slow, pytest.mark.flower, pytest.mark.xdist_group("simulation")]


@pytest.mark.parametrize("method", METHODS)
def test_flowers_simulation_ends_with_the_same_bits(tmp_path: Path, method: str) -> None:
    site, changes, out, log = site_in(tmp_path), {"method": METHODS[method]}, tmp_path / "out", tmp_path / "log"
    plain = site.experiment(site.folder / "whole", **changes)
    path = site.write("simulated", site.experiment(site.folder / "whole", fleet=by_client(plain), **changes))
    assert hellora("run", path, "--backend", "flower", "--out", out, folder=tmp_path, log=log).wait() == 0
    assert same_bits(tensors(out), site.replay("out", [], **changes))
    assert "Warning" not in log.read_text()
