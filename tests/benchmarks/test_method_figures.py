"""The committed figures of docs/methods/ are what the script makes of presets and tables."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "method_figures.py"
COMMITTED = {file.name: file.read_text() for file in (ROOT / "docs" / "figures" / "methods").iterdir()}


@pytest.fixture(scope="module")
def made() -> Mapping[str, str]:
    spec = importlib.util.spec_from_file_location("method_figures", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Mapping[str, str] = module.figures()
    return found


def test_the_committed_figures_are_what_the_script_makes(made: Mapping[str, str]) -> None:
    assert set(made) == set(COMMITTED)
    assert [name for name in made if made[name] != COMMITTED[name]] == []


@pytest.mark.parametrize("name", sorted(COMMITTED))
def test_a_figure_is_small_and_fits_a_phone(name: str) -> None:
    assert len(COMMITTED[name].encode()) < 15_000
    root = ElementTree.fromstring(COMMITTED[name])
    assert int(root.attrib["width"]) <= 380
    size = ".//{http://www.w3.org/2000/svg}text"
    assert all(0 <= float(text.attrib["x"]) <= 380 for text in root.findall(size))
