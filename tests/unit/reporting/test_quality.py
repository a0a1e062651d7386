"""Accuracy and loss on every axis, of one run and of several."""

from pathlib import Path

import pytest
from run_folders import ended_run, line, write_run

from hellora.reporting.overview import page_of_run
from hellora.reporting.parts import Section
from hellora.reporting.quality import byte_unit, compared_quality, quality_sections, step_of
from hellora.reporting.record import RunRecord, read_run

T = 12.706204736432095  # Student's t(0.975, 1)


def accuracy_of(run: RunRecord) -> Section:
    section = quality_sections(run)[0]
    assert section.id == "accuracy"
    return section


def test_accuracy_over_rounds_bytes_and_simulated_time(tmp_path: Path) -> None:
    section = accuracy_of(read_run(ended_run(tmp_path / "run", [0.3, 0.5])))
    assert [view.label for view in section.views] == ["rounds", "bytes", "simulated time"]
    for view, x in zip(section.views, ((-1, 0, 1), (0, 300, 600), (0, 10, 20)), strict=True):
        accuracy, f1 = view.figure.data
        assert accuracy.x == x
        assert accuracy.y == (0.1, 0.3, 0.5)
        assert f1.y == (0.05, 0.15, 0.25)
    assert section.views[0].table.columns == ["after round", "accuracy", "macro F1"]
    assert section.views[0].table.rows[:2] == [["start", "0.1000", "0.0500"], ["0", "0.3000", "0.1500"]]
    assert section.views[0].figure.layout.xaxis.labelalias == {"\u22121": "start"}


def test_rounds_that_were_not_evaluated_are_left_out(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", [line(0, None), line(1, 0.4)]))
    assert accuracy_of(run).views[0].figure.data[0].x == (1,)


def test_training_loss_is_the_mean_by_examples(tmp_path: Path) -> None:
    loss = quality_sections(read_run(ended_run(tmp_path / "run")))[1]
    training = loss.views[0].figure.data[1]
    assert (training.x, training.y) == ((0, 1), (1.75, 1.75))  # (10 · 1 + 30 · 2) / 40


def test_a_language_model_has_no_accuracy(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", [line(0, metrics={"loss": 2.0})]))
    assert [section.id for section in quality_sections(run)] == ["loss"]


def test_labels_of_rounds_have_room() -> None:
    assert [step_of(count) for count in (2, 9, 10, 19, 46, 501)] == [1, 1, 2, 5, 10, 100]


def test_without_simulated_time_the_axis_is_left_out_and_is_missed_once(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", [line(0, simulated_clock=None)]))
    section = accuracy_of(run)
    assert [view.label for view in section.views] == ["rounds", "bytes"]
    assert section.lead == ""
    missed = [each for each in page_of_run(run).sections if "no simulated time" in each.why]
    assert [each.id for each in missed] == ["time"]


def test_real_clients_take_real_time(tmp_path: Path) -> None:
    lines = [line(0, seconds=20.0, simulated_clock=None), line(1, seconds=30.0, simulated_clock=None)]
    clients = [{"id": i, "name": name, "examples": 4} for i, name in enumerate(("clinic", "hospital", "phone"))]
    run = read_run(write_run(tmp_path / "real", lines, clients))
    section = accuracy_of(run)
    assert [view.label for view in section.views] == ["rounds", "bytes", "time"]
    assert section.views[2].figure.data[0].x == (20, 50)
    assert section.lead == ""
    groups = {"mine": [run]}
    assert compared_quality("accuracy", "Accuracy", "accuracy", groups).views[2].label == "time"
    simulated = read_run(write_run(tmp_path / "simulated", lines, [{"id": 0, "examples": 4}]))
    assert [view.label for view in accuracy_of(simulated).views] == ["rounds", "bytes"]


def test_before_the_first_round_nothing_is_drawn(tmp_path: Path) -> None:
    for section in quality_sections(read_run(write_run(tmp_path / "run"))):
        assert not section.views
        assert section.why


def test_the_unit_is_the_largest_below_the_numbers() -> None:
    assert [byte_unit(n)[1] for n in (0, 1023, 1024, 2**20, 3 * 2**30)] == ["bytes", "bytes", "KiB", "MiB", "GiB"]


def test_seeds_become_a_mean_with_student_s_interval(tmp_path: Path) -> None:
    runs = [read_run(ended_run(tmp_path / f"{i}", a)) for i, a in enumerate(([0.2, 0.4], [0.4, 0.6]))]
    section = compared_quality("accuracy", "Accuracy", "accuracy", {"mine": runs})
    band, mean = section.views[0].figure.data
    assert mean.x == (0, 1, 2)
    assert mean.y == pytest.approx((0.1, 0.3, 0.5))
    half = T * 0.1  # s = 0.1 √2, over √2
    assert band.y == pytest.approx((0.1, 0.3 + half, 0.5 + half, 0.5 - half, 0.3 - half, 0.1))
    assert section.views[0].table.rows[1] == ["mine", "1", "0.3000", f"± {half:.4f}"]


def test_a_run_that_has_not_finished_a_round_takes_no_group_away(tmp_path: Path) -> None:
    runs = [read_run(ended_run(tmp_path / "0", [0.2])), read_run(write_run(tmp_path / "1"))]
    section = compared_quality("accuracy", "Accuracy", "accuracy", {"mine": runs})
    (mean,) = section.views[0].figure.data
    assert mean.y == pytest.approx((0.1, 0.2))


def test_a_wide_interval_does_not_press_the_curves_together(tmp_path: Path) -> None:
    """Of accuracies 0.2 and 0.8, Student's interval is 0.5 ± 3.8; of losses 0.8 and 0.2 the means are 0.9 and 0.5."""
    runs = [read_run(ended_run(tmp_path / f"{i}", [a])) for i, a in enumerate((0.2, 0.8))]
    accuracy = compared_quality("accuracy", "Accuracy", "accuracy", {"mine": runs}).views[0].figure
    assert max(accuracy.data[0].y) == pytest.approx(0.5 + T * 0.3)
    assert accuracy.layout.yaxis.range == pytest.approx((-0.04, 1.04))
    loss = compared_quality("loss", "Loss", "loss", {"mine": runs}).views[0].figure
    assert loss.layout.yaxis.range == pytest.approx((-0.04 * 1.3, 1.04 * 1.3))  # 0.9 + (0.9 − 0.5)
    alike = [read_run(ended_run(tmp_path / f"alike-{i}", [a])) for i, a in enumerate((0.50, 0.51))]
    assert (
        compared_quality("accuracy", "Accuracy", "accuracy", {"mine": alike}).views[0].figure.layout.yaxis.range is None
    )


def test_a_group_goes_as_far_as_all_of_its_seeds(tmp_path: Path) -> None:
    runs = [read_run(ended_run(tmp_path / f"{i}", [0.2] * rounds)) for i, rounds in enumerate((3, 1))]
    section = compared_quality("accuracy", "Accuracy", "accuracy", {"mine": runs, "alone": runs[:1]})
    assert [trace.x for trace in section.views[0].figure.data if trace.mode != "lines"] == [(0, 1), (0, 1, 2, 3)]


def test_seeds_that_sent_other_amounts_stand_at_their_mean(tmp_path: Path) -> None:
    lines = [line(0), line(0, uplink_bytes=300)]
    runs = [read_run(write_run(tmp_path / f"{i}", [each])) for i, each in enumerate(lines)]
    section = compared_quality("accuracy", "Accuracy", "accuracy", {"mine": runs})
    assert section.views[1].figure.data[-1].x == (400,)
