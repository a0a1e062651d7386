"""The report of 500 rounds with 100 clients: its size, and that its gates can be missed."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from hellora.reporting.overview import page_of
from hellora.reporting.page import content_of, html

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "report.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("report_benchmark", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_report_of_500_rounds_with_100_clients_is_below_10_megabytes(benchmark: ModuleType, tmp_path: Path) -> None:
    page = page_of([benchmark.write_run(tmp_path / "run")])
    assert len(html(content_of(page)).encode()) < 10e6
    (allocation,) = [section for section in page.sections if section.id == "allocation"]
    assert allocation.steps is not None
    assert len(allocation.steps.ranks) == 500 * 90 * 32  # a tenth of the clients fail in each round
    assert all(section.views for section in page.sections)
