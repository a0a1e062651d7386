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


def matrix(counts: list[list[int]], *labels: str) -> dict[str, Any]:
    return {"labels": list(labels), "counts": counts}


def test_scores_and_what_is_taken_for_what(tmp_path: Path) -> None:
    """Of class b there is no example: its row has no shares. Round 1 was not evaluated."""
    found = {"a": scores(0.8), "b": scores(0.0, 0)}
    lines = [
        line(0, per_class={"a": scores(0.6)}),
        line(1, None),
        line(2, per_class={"a": scores(0.8), "b": scores(0.1)}),
    ]
    (section,) = classes(run_with(tmp_path, lines, per_class=found, confusion=matrix([[3, 1], [0, 0]], "a", "b")))
    assert section.lead == "After round 2."
    of_scores, over_rounds, shares, examples = section.views
    assert of_scores.table.rows[0] == ["a", "0.5000", "0.2500", "0.8000", "4"]
    (trace,) = over_rounds.figure.data
    assert (trace.x, trace.y) == (("0", "2"), ("a", "b"))
    assert trace.z == pytest.approx(np.array([[0.6, 0.8], [np.nan, 0.1]]), nan_ok=True)
    assert over_rounds.table.rows == [["a", "0.6000", "0.8000"], ["b", "–", "0.1000"]]
    (trace,) = shares.figure.data
    assert trace.z == pytest.approx(np.array([[0.75, 0.25], [np.nan, np.nan]]), nan_ok=True)
    assert examples.table.rows == [["a", "3", "1"], ["b", "0", "0"]]


def test_a_run_in_progress_shows_the_last_round_that_was_evaluated(tmp_path: Path) -> None:
    lines = [line(0, per_class={"a": scores(0.6)}), line(1, None)]
    (section,) = classes(read_run(write_run(tmp_path / "run", lines)))
    assert section.lead == "After round 0."
    assert [view.table.rows[0][0] for view in section.views] == ["a"]


def test_of_many_classes_the_pairs_are_shown_that_are_confused_most(tmp_path: Path) -> None:
    long = "not_equivalent_at_all"
    found = {name: scores(0.5) for name in ("a", "b", f"{long}_1", f"{long}_2")}
    pairs = [["a", f"{long}_1", 9], ["a", f"{long}_2", 7], ["b", "a", 1]]
    (section,) = classes(run_with(tmp_path, per_class=found, most_confused=pairs))
    view = section.views[-1]
    assert view.label == "most confused"
    assert view.figure.data[0].y == ("a → not_equi… 1", "a → not_equi… 2", "b → a")
    assert view.figure.data[0].x == (9, 7, 1)
    assert view.table.rows[0] == ["a", f"{long}_1", "9"]


def test_of_many_classes_the_worst_are_shown(tmp_path: Path) -> None:
    found = {f"c{i}": scores(1 - i / 200) for i in range(MOST + 5)}
    (section,) = classes(run_with(tmp_path, per_class=found))
    (view,) = section.views
    assert (len(view.table.rows), view.table.left_out, view.table.rows[0][0]) == (MOST, 5, f"c{MOST + 4}")


def test_a_run_without_them_says_so_and_a_language_model_does_not(tmp_path: Path) -> None:
    (section,) = classes(run_with(tmp_path))
    assert section.why == "This run did not record it."
    words = {"initial": {"loss": 3.0}, "final": {"loss": 2.0}}
    assert classes(run_with(tmp_path, [line(0, metrics={"loss": 2.0})], **words)) == []


@pytest.mark.parametrize(
    "damage",
    [
        {"per_class": [1]},
        {"per_class": {"a": {"f1": 1}}},
        {"per_class": {"a": scores(1)}, "confusion": [[1]]},
        {"per_class": {"a": scores(1)}, "confusion": matrix([[1, 2]], "a")},
        {"per_class": {"a": scores(1)}, "confusion": matrix([[1]], "b")},
        {"per_class": {"a": scores(1)}, "most_confused": [["a", "b", 1]]},
    ],
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
    assert shortened(["sea", *alike]) == ["sea", "not_equival… 2", "not_equival… 3"]
