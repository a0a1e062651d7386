"""What `hellora predict` and `hellora evaluate` show at 80 and 120 columns: the likeliest, cut to fit, rounded."""

from io import StringIO
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from hellora.cli.tables import MOST_ROWS, confusion_table, predictions_table, scores_table
from hellora.core.per_class import PerClass

LONG = "we saw the old boat near the tide and the new moon near a field of " + "very " * 20 + "wet soil"
NAMES = ["concurrency_and_parallel_execution", "海と空の青い境界線", "a\x1b[31mb", "io"]


def shown(table: Any, width: int) -> list[str]:
    """The lines, none of which is wider than the terminal, or steers it."""
    console = Console(file=StringIO(), width=width, soft_wrap=True)
    console.print(table)
    lines: list[str] = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(cell_len(line) <= width for line in lines), lines
    assert "\x1b" not in "".join(lines)
    return [line.rstrip() for line in lines]


def predicted(width: int, rows: list[dict[str, Any]], texts: list[str]) -> list[str]:
    return shown(predictions_table(Console(width=width), rows, texts), width)


def classes(*probabilities: float, **more: Any) -> dict[str, Any]:
    return {**more, "probabilities": dict(zip(NAMES, probabilities, strict=True))}


@pytest.mark.parametrize("width", [80, 120])
def test_the_three_likeliest_classes_are_rounded_and_the_text_is_cut(width: int) -> None:
    rows = [
        {"row": i, "label": NAMES[0], **classes(0.612345, 0.3, 0.08, 0.007655)} for i in range(MOST_ROWS + 5)
    ]  # fmt: skip
    heading, first, *others = predicted(width, rows, [LONG, "boat"] * MOST_ROWS)
    assert heading.split() == ["row", "text", "likeliest", "2nd", "3rd"]
    assert first.startswith("  0  we saw the old boat")
    assert "…" in first[: width - 40]
    assert "0.61 concurr" in first
    assert ("0.61 concurrency_and_p" in first) == (width == 120)
    assert "0.30 海と" in first
    assert "io" not in first, "the fourth"
    assert len(others) == MOST_ROWS - 1


@pytest.mark.parametrize("width", [80, 120])
def test_every_kind_of_prediction_has_its_columns(width: int) -> None:
    labels = [
        {"row": 0, "labels": NAMES[:2], **classes(0.9, 0.8, 0.1, 0.0)},
        {"row": 1, "labels": [], **classes(*[0.1] * 4)},
    ]
    lines = predicted(width, labels, ["a", "b"])
    assert lines[0].split() == ["row", "text", "labels", "likeliest", "2nd", "3rd"]
    assert lines[2].split()[:3] == ["1", "b", "–"]
    entities = [{"label": "PER", "text": "Peter Pan"}, {"label": "LOC", "text": "York"}]
    lines = predicted(width, [{"row": 0, "entities": entities, "tags": ["B-PER"]}], ["Peter Pan in York"])
    assert lines[1] == "  0  Peter Pan in York  PER Peter Pan, LOC York"
    assert predicted(width, [{"row": 7, "tags": ["DET", None]}], ["the x"]) == ["row  text   tags", "  7  the x  DET –"]
    lines = predicted(width, [{"row": 0, "file": "a/b.png", "label": NAMES[0], **classes(1, 0, 0, 0)}], ["a/b.png"])
    assert lines[0].split()[:3] == ["row", "file", "likeliest"]
    numbers = [{"row": 0, "valence": 0.123456, "arousal": -12345.6}]
    assert predicted(width, numbers, ["x"])[1].split() == ["0", "x", "0.1235", "-1.235e+04"]
    many = predicted(width, [{"row": 0, **{f"number {i}": 1 / 3 for i in range(30)}}], ["x"])
    assert many[1].split() == ["0", "x", *["0.3333"] * ((width - 5 - 24) // 10)], "what has no room is left out"


@pytest.mark.parametrize("width", [80, 120])
def test_answers_have_up_to_three_lines(width: int) -> None:
    rows = [{"row": 0, "prompt": LONG * 3, "answer": LONG * 3}, {"row": 1, "prompt": "who?", "answer": ""}]
    lines = predicted(width, rows, [])
    assert lines[0].split() == ["row", "prompt", "answer"]
    assert len(lines) == 1 + 3 + 1
    assert lines[3].count("…") == 2
    assert lines[-1].split(maxsplit=2) == ["1", "who?", "(nothing)"]


def evaluated(true: list[int], said: list[int], names: list[str]) -> dict[str, Any]:
    found = PerClass.of(true, said)
    return {"per_class": found.scores(names), **found.confusion(names)}


def test_a_matrix_that_fits_is_shown_and_else_the_pairs() -> None:
    few = evaluated([0, 0, 0, 1, 2, 3], [0, 0, 1, 1, 2, 0], NAMES)
    lines = shown(confusion_table(few, 80), 80)
    assert [row.split()[-4:] for row in lines[2:]] == [
        ["2", "1", "·", "·"], ["·", "1", "·", "·"], ["·", "·", "1", "·"], ["1", "·", "·", "·"]
    ]  # fmt: skip
    many = evaluated([*range(15), 4, 4], [*range(15), 9, 9], [f"class {i}" for i in range(15)])
    assert "class 4" in shown(confusion_table(many, 80), 80)[4]
    pair = shown(confusion_table(many, 80), 80)[4].replace("│", " ").split()
    assert pair == ["class", "4", "class", "9", "2", "67%"]
    assert len(shown(confusion_table(many, 120), 120)) == 2 + 15
    assert confusion_table(evaluated([*range(60)], [*range(60)], [f"c{i}" for i in range(60)]), 80) is None
    assert confusion_table({}, 80) is None


@pytest.mark.parametrize("width", [80, 120])
def test_scores_are_of_the_classes_that_are_recognised_worst(width: int) -> None:
    labels = [*range(4)] * 2
    lines = shown(scores_table(evaluated(labels, [0, 1, 2, 3, 0, 1, 2, 0], NAMES)["per_class"]), width)
    assert "0.667" in lines[3]
    many = evaluated([*range(30), 7], [*range(30), 8], [f"c{i}" for i in range(30)])
    assert any("c7 " in line for line in shown(scores_table(many["per_class"]), width))
    assert len(shown(scores_table(many["per_class"]), width)) == 20 + 4
