"""The section on classes: the table of scores, the matrix, and what stands for them where there are none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import line, summary_of, write_run

from hellora.core.errors import InputError
from hellora.reporting.classes import MOST, classes, shortened
from hellora.reporting.quality import quality_sections
from hellora.reporting.record import RunRecord, read_run


def scores(f1: float, examples: int = 4) -> dict[str, float]:
    return {"precision": 0.5, "recall": 0.25, "f1": f1, "examples": examples}


def run_with(folder: Path, lines: Any = None, **summary: Any) -> RunRecord:
    lines = lines or [line(0)]
    return read_run(write_run(folder / "run", lines, summary=summary_of(lines, **summary)))


def test_scores_and_what_is_taken_for_what(tmp_path: Path) -> None:
    """Of class b there is no example: its row has no shares."""
    found = {"a": scores(0.8), "b": scores(0.0, 0)}
    (section,) = classes(run_with(tmp_path, per_class=found, confusion=[[3, 1], [0, 0]]))
    assert section.lead.endswith("Lowest F1: a, 0.800."), "of those that occur"
    assert [view.label for view in section.views] == ["F1", "share of the class", "examples"]
    assert section.views[0].table.rows[0] == ["a", "0.5000", "0.2500", "0.8000", "4"]
    (trace,) = section.views[1].figure.data
    assert trace.z == pytest.approx(np.array([[0.75, 0.25], [np.nan, np.nan]]), nan_ok=True)
    assert section.views[2].table.rows == [["a", "3", "1"], ["b", "0", "0"]]


def test_of_many_classes_the_worst_are_shown(tmp_path: Path) -> None:
    found = {f"c{i}": scores(1 - i / 200) for i in range(MOST + 5)}
    (section,) = classes(run_with(tmp_path, per_class=found))
    (view,) = section.views
    assert (len(view.table.rows), view.table.left_out, view.table.rows[0][0]) == (MOST, 5, f"c{MOST + 4}")


def test_a_run_without_them_says_so_and_a_language_model_does_not(tmp_path: Path) -> None:
    (section,) = classes(run_with(tmp_path))
    assert section.why.startswith("Not recorded")
    words = {"initial": {"loss": 3.0}, "final": {"loss": 2.0}}
    assert classes(run_with(tmp_path, [line(0, metrics={"loss": 2.0})], **words)) == []


@pytest.mark.parametrize(
    "damage",
    [{"per_class": [1]}, {"per_class": {"a": {"f1": 1}}}, {"per_class": {"a": scores(1)}, "confusion": [[1, 2]]}],
)
def test_what_no_run_wrote_is_damage(damage: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"summary\.json is damaged"):
        run_with(tmp_path, **damage)


def test_each_metric_that_was_asked_for_has_its_plot(tmp_path: Path) -> None:
    measured = {"accuracy": 0.5, "loss": 1.0, "matthews": 0.2, "bias.worst": 0.1}
    lines = [line(0, metrics=measured), line(1, metrics={**measured, "matthews": 0.4})]
    task = {"metrics": ["matthews", "mine.py:bias"]}
    run = read_run(write_run(tmp_path / "run", lines, task=task))
    sections = {section.title: section for section in quality_sections(run)}
    assert list(sections) == ["Accuracy", "Loss", "Matthews' φ", "Bias.worst"]
    assert list(sections["Matthews' φ"].views[0].figure.data[0].y) == [0.2, 0.4]


def test_long_names_are_cut_and_stay_apart() -> None:
    alike = [f"not_equivalent_at_all_{end}" for end in ("here", "there")]
    assert shortened(["sea", *alike]) == ["sea", "not_equivalent_… 2", "not_equivalent_… 3"]
