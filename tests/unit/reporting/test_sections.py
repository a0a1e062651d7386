"""The sections of one run, by their data; and the line that stands for one that a run cannot have."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import ended_run, line, summary_of, write_run

from hellora.core.errors import InputError
from hellora.reporting import answers, clients, training
from hellora.reporting.clients import MOST_REASONS
from hellora.reporting.overview import page_of_run
from hellora.reporting.page import section_content
from hellora.reporting.record import RunRecord, read_run


@pytest.fixture
def run_of(tmp_path: Path) -> Any:
    """The run with these lines, and whatever else a folder has."""

    def made(*lines: dict[str, Any], **more: Any) -> RunRecord:
        return read_run(write_run(tmp_path / "run", lines, **more))

    return made


def test_the_ranks_of_every_round_are_kept_in_as_many_bytes(run_of: Any) -> None:
    run = run_of(line(0), line(1, cohort=[1], ranks={"1": [3, 1]}))
    steps = training.allocation(run).steps
    assert steps is not None
    assert steps.clients == ["client 0", "client 1", "client 2"]
    assert (steps.trained, steps.rounds, steps.layers) == ([[0, 2], [1]], [0, 1], 2)
    assert (steps.dtype, list(steps.ranks)) == ("u1", [0, 4, 2, 0, 3, 1])


def test_the_last_round_is_drawn_first_with_blanks_for_who_was_not_asked(run_of: Any) -> None:
    (trace,) = training.allocation(run_of(line(0))).views[0].figure.data
    assert trace.z == pytest.approx(np.array([[0, 4], [2, 0]]))
    assert trace.y == ("client 0", "client 2")
    (trace,) = training.allocation(run_of(line(0), line(1, cohort=[1], ranks={"1": [3, 1]}))).views[0].figure.data
    assert trace.z == pytest.approx(np.array([[np.nan, np.nan], [3, 1], [np.nan, np.nan]]), nan_ok=True)


def test_who_was_left_behind_trained_nothing(run_of: Any) -> None:
    run = run_of(line(0, missing={"0": "too late"}), line(1, missing={"0": "gone"}, rejected={"2": "nan"}))
    section = training.allocation(run)
    assert section.steps is not None
    assert (section.steps.trained, list(section.steps.ranks)) == ([[1], []], [2, 0])
    assert np.isnan(section.views[0].figure.data[0].z).all()
    assert "Blank: not asked in this round, missing or rejected." in section.lead
    run.lines[1]["rejected"].clear()
    (trace,) = training.allocation(run).views[0].figure.data
    assert trace.z == pytest.approx(np.array([[np.nan, np.nan], [2, 0]]), nan_ok=True)


def test_a_large_rank_takes_two_bytes(run_of: Any) -> None:
    steps = training.allocation(run_of(line(0, ranks={"0": [300, 0]}))).steps
    assert steps is not None
    assert np.frombuffer(steps.ranks, f"<{steps.dtype}").tolist() == [300, 0]


def test_layer_scores_latest_and_over_rounds(run_of: Any) -> None:
    run = run_of(line(0, layer_scores=[1.0, 3.0]), line(1), line(2, layer_scores=[5.0, None]))
    latest, over_rounds = training.layer_scores(run).views
    assert latest.label == "latest, round 2"
    assert latest.figure.data[0].y == (5.0, None)
    assert latest.table.rows == [["0", "5", "100.0%"], ["1", "–", "–"]]
    assert over_rounds.figure.data[0].x == ("0", "2")
    assert over_rounds.figure.data[0].z == pytest.approx(np.array([[0.25, 1], [0.75, np.nan]]), nan_ok=True)


def test_scores_that_say_nothing_are_no_plot(run_of: Any) -> None:
    assert not training.layer_scores(run_of(line(0, layer_scores=[None, None]))).views


def test_a_run_in_which_nobody_trained_has_a_scale(run_of: Any) -> None:
    (trace,) = training.allocation(run_of(line(0, ranks={"0": [0, 0]}))).views[0].figure.data
    assert (trace.zmin, trace.zmax) == (0, 1)


def test_memory_is_the_most_of_all_rounds_beside_the_budget(run_of: Any) -> None:
    peaks = [{"0": {"predicted_peak_bytes": p * 2**20, "peak_bytes": m * 2**20}} for p, m in ((3, 5), (4, 2))]
    clients = [{"id": i, "examples": 1, "budget": b} for i, b in enumerate(({"memory_bytes": 6 * 2**20}, {}))]
    run = run_of(line(0, clients=peaks[0]), line(1, clients=peaks[1]), clients=clients)
    (view,) = training.memory(run).views
    assert {trace.name: trace.y for trace in view.figure.data} == {"predicted": (4,), "measured": (5,), "budget": (6,)}
    assert view.figure.layout.yaxis.title.text == "MiB"
    assert view.table.rows == [["client 0", "4.0 MiB", "5.0 MiB", "6.0 MiB"]]


def test_bytes_in_each_round_and_in_all(run_of: Any) -> None:
    each, summed = training.traffic(run_of(line(0), line(1))).views
    assert [trace.y for trace in each.figure.data] == [(100, 100), (200, 200)]
    assert [trace.y for trace in summed.figure.data] == [(100, 200), (200, 400)]


def test_groups_and_the_worst_client(tmp_path: Path) -> None:
    section = clients.served(read_run(ended_run(tmp_path / "run")))
    groups, each = section.views
    assert groups.figure.data[0].x == ("1 layer", "2 layers")
    assert groups.figure.data[0].y == (0.4, 0.6)
    assert each.figure.data[0].x == ("client 1", "client 0", "client 2")
    assert (each.figure.data[1].x, each.figure.data[1].y) == (("client 1",), (0.25,))


def test_groups_of_a_language_model_go_by_their_loss(tmp_path: Path) -> None:
    lines = [line(0, metrics={"loss": 2.0})]
    groups = [{"layers": 1, "rank": 4, "clients": 2, "metrics": {"loss": 1.5}}]
    summary = summary_of(lines, initial={"loss": 3.0}, groups=groups, clients={}, worst_client=None)
    (view,) = clients.served(read_run(write_run(tmp_path / "run", lines, summary=summary))).views
    assert (view.figure.data[0].name, view.figure.data[0].y) == ("loss", (1.5,))


def test_label_counts_the_most_frequent_class_to_the_left(run_of: Any) -> None:
    labels = [{"sky": 1, "sea": 3}, {"sky": 4}]
    known = [{"id": i, "examples": 4, "budget": {}, "labels": each} for i, each in enumerate(labels)]
    counts, shares = clients.labels(run_of(line(0), clients=known)).views
    assert counts.figure.data[0].x == ("sky", "sea")
    assert counts.figure.data[0].z == pytest.approx(np.array([[1, 3], [4, 0]]))
    assert shares.figure.data[0].z == pytest.approx(np.array([[0.25, 0.75], [1, 0]]))
    assert counts.table.rows == [["client 0", "4", "1", "3"], ["client 1", "4", "4", "0"]]


def test_every_failure_counts_in_all_attempts(run_of: Any) -> None:
    repeated = [{"missing": {"2": "gone"}, "rejected": {"0": "nan"}, "dropped": {}}]
    run = run_of(line(0, missing={"2": "gone"}), line(1, repeated=repeated, dropped={"0": ["late", "late"]}))
    by_round, by_client = clients.failures(run).views
    assert {trace.name: trace.y for trace in by_round.figure.data} == {
        "missing": (1, 1),
        "rejected": (0, 1),
        "dropped": (0, 2),
    }
    assert {trace.name: (trace.x, trace.y) for trace in by_client.figure.data} == {
        "missing": (("client 0", "client 2"), (0, 2)),
        "rejected": (("client 0", "client 2"), (1, 0)),
        "dropped": (("client 0", "client 2"), (2, 0)),
    }
    assert by_round.table.rows == [
        ["client 0", "dropped", "late", "2", "1, 1"],
        ["client 2", "missing", "gone", "2", "0, 1"],
        ["client 0", "rejected", "nan", "1", "1"],
    ]


def test_a_table_of_reasons_has_an_end_and_says_so(run_of: Any) -> None:
    run = run_of(*(line(round, missing={"0": f"reason {round}"}) for round in range(MOST_REASONS + 3)))
    table = clients.failures(run).views[0].table
    assert (len(table.rows), table.left_out) == (MOST_REASONS, 3)


def test_the_spectrum_and_its_effective_rank(run_of: Any) -> None:
    run = run_of(line(0, energy=[0, 0]), line(1, energy=[1, 0]), line(2, energy=[0.75, 0.25]))
    latest, over_rounds, effective = training.spectrum(run).views
    assert latest.figure.data[0].y == (0.75, 0.25)
    assert over_rounds.figure.data[0].z == pytest.approx(np.array([[1, 0.75], [0, 0.25]]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective.figure.data[0].x == (1, 2)
    assert effective.figure.data[0].y == pytest.approx((1, math.exp(entropy)))


def test_a_spectrum_says_if_it_is_from_a_sample_and_may_be_switched_off(run_of: Any) -> None:
    sampled = {"measured_modules": {"aggregation_error": [2, 8], "energy": [3, 12]}}
    assert training.spectrum(run_of(line(0, **sampled))).lead.endswith(" Measured in 3 of 12 modules.")
    off = training.spectrum(run_of(line(0, energy=None, aggregation_error=None, measured_modules=None)))
    assert not off.views
    assert off.why


def test_an_old_run_says_why_a_section_is_left_out(run_of: Any) -> None:
    """It has what version 0 wrote: no clients.json, no summary yet, no energy, no scores, no memory, no clock."""
    old = line(0)
    for name in ("energy", "layer_scores", "dropped", "repeated", "simulated_clock", "simulated_seconds"):
        del old[name]
    page = page_of_run(run_of(old))
    left_out = {section.id: section.why for section in page.sections if not section.views}
    assert left_out.keys() == {"scores", "spectrum", "memory", "served", "labels", "drift", "failures", "time"}
    assert all(left_out.values())
    assert all(section.views or section.why for section in page.sections)


def test_a_stopped_run_says_nothing_of_the_round_that_failed_but_why_it_stopped(run_of: Any, tmp_path: Path) -> None:
    """The attempts of the round in which it stopped are in no line."""
    run_of(line(0))
    (tmp_path / "run" / "error.log").write_text("Traceback:\n  in weights\nValueError: no weights\n\n")
    page = page_of_run(read_run(tmp_path / "run"))
    why = {section.id: section.why for section in page.sections}["failures"]
    assert why == "In the rounds that ended, no client was missing or rejected, and no answer was dropped."
    assert dict(page.facts)["stopped by"] == "ValueError: no weights (the whole is in error.log)"
    ended = page_of_run(read_run(ended_run(tmp_path / "run")))
    assert "stopped by" not in dict(ended.facts)


def test_a_run_without_a_round_has_no_plot(run_of: Any) -> None:
    page = page_of_run(run_of())
    assert not any(section.views for section in page.sections)
    assert dict(page.facts)["state"] == "0 of 3 rounds, not ended"
    assert [section.id for section in page.sections] == ["labels"]  # nothing is said of what cannot be known yet
    assert "No round has ended yet" in page.notes[0]


@pytest.mark.parametrize(
    ("name", "shown"),
    [("/data/of/mine/server.csv", "server.csv"), ("../data/trec", "trec"), ("org/data", "org/data"), ("minilm",) * 2],
)
def test_a_path_of_a_machine_is_not_shown(run_of: Any, name: str, shown: str) -> None:
    facts = dict(page_of_run(run_of(model={"name": name, "rank": 4}, data={"name": name, "clients": 3})).facts)
    assert facts["model"] == f"{shown}, rank 4"
    assert facts["data"] == shown


def answer(round: int | None, row: int, said: str) -> dict[str, Any]:
    return {"round": round, "row": row, "prompt": f"What is {row}?", "reference": f"It is {row}.", "answer": said}


def with_answers(folder: Path, *answers: dict[str, Any]) -> RunRecord:
    write_run(folder, [line(0), line(1)], task={"name": "causal_lm"})
    (folder / "answers.jsonl").write_text("".join(json.dumps(each) + "\n" for each in answers))
    return read_run(folder)


def test_answers_before_and_after_stand_beside_the_reference(tmp_path: Path) -> None:
    first = [answer(None, 0, "a"), answer(None, 1, "b")]
    (section,) = answers.answers(
        with_answers(tmp_path, *first, answer(0, 0, "c"), answer(1, 0, "d"), answer(1, 1, "e"))
    )
    assert section.texts is not None
    assert section.texts.columns == ["prompt", "before training", "after round 1", "reference"]
    assert section.texts.rows == [["What is 0?", "a", "d", "It is 0."], ["What is 1?", "b", "e", "It is 1."]]
    (section,) = answers.answers(with_answers(tmp_path, *first))
    assert section.texts is not None
    assert section.texts.columns == ["prompt", "before training", "reference"]
    content = section_content(section)
    assert content["texts"]["rows"][1] == ["What is 1?", "b", "It is 1."]
    assert section.id in [each.id for each in page_of_run(read_run(tmp_path)).sections]


def test_many_answers_have_an_end(tmp_path: Path) -> None:
    (section,) = answers.answers(with_answers(tmp_path, *(answer(None, row, "a") for row in range(130))))
    assert section.texts is not None
    assert (len(section.texts.rows), section.texts.left_out) == (100, 30)


def test_a_language_model_that_was_not_asked_says_so_and_others_do_not(run_of: Any) -> None:
    (section,) = answers.answers(run_of(line(0), task={"name": "causal_lm"}))
    assert section.why == "The run was not asked to answer prompts: set task.answers."
    assert answers.answers(run_of(line(0))) == []


def test_a_damaged_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"answers\.jsonl is damaged: line 2: answer is missing"):
        with_answers(tmp_path, answer(None, 0, "a"), {k: v for k, v in answer(0, 0, "b").items() if k != "answer"})
