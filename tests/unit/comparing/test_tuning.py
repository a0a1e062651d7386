"""Which point of a grid is chosen, for a setting by itself or for several together."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hellora.comparing import run
from hellora.comparing.plan import Comparison, Tuning
from hellora.comparing.runs import Cell, Run
from hellora.core.errors import InputError
from hellora.experiments.experiment import Experiment

GRID = {"train.lr": (1e-3, 1e-2)}
SETTINGS: dict[str, dict[str, Any]] = {name: {"data.alpha": alpha} for name, alpha in (("a", 0.1), ("b", 1), ("c", 9))}
ACCURACY = {("a", 1e-3): 0.9, ("a", 1e-2): 0.2, ("b", 1e-3): 0.5, ("b", 1e-2): 0.6, ("c", 1e-3): 0.1, ("c", 1e-2): 0.8}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, float]]:
    """Every run that is asked for, as (setting, method, rate); it comes to what ACCURACY says."""
    asked: list[tuple[str, str, float]] = []

    def run_cell(experiment: Experiment, _: Path, cell: Cell, *_more: Any) -> Run:
        asked.append((cell.setting, cell.method, experiment.train.lr))
        return Run({"final": {"accuracy": ACCURACY[cell.setting, experiment.train.lr]}}, [])

    monkeypatch.setattr(run, "run_cell", run_cell)
    return asked


def chosen(tune: Tuning) -> dict[str, Any]:
    comparison = Comparison({}, {"plain": {}}, SETTINGS, tune=tune)
    assert comparison.tuning_runs == len(comparison.tuning_cells) * 2
    found, _ = run.tuned_values(comparison, Path(), run.Tally(0, Console(quiet=True)))
    return {setting: (point or {}).get("train.lr") for (setting, _), point in found.items()}


def test_each_setting_has_its_own(runs: list[tuple[str, str, float]]) -> None:
    assert chosen(Tuning(GRID)) == {"a": 1e-3, "b": 1e-2, "c": 1e-2}
    assert len(runs) == 6


def test_settings_that_are_tuned_together_choose_for_all(runs: list[tuple[str, str, float]]) -> None:
    """a and b: .7 and .4 in the mean."""
    assert chosen(Tuning(GRID, settings=("a", "b"))) == dict.fromkeys("abc", 1e-3)
    assert {setting for setting, _, _ in runs} == {"a", "b"}


def test_a_setting_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"tune\.settings: 'd' is none of a, b, c: correct it"):
        chosen(Tuning(GRID, settings=("a", "d")))
