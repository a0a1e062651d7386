"""The first screen of a run's page: what was learned, by whom, at what cost."""

from pathlib import Path
from typing import Any

import pytest
from run_folders import ended_run, line, metrics, summary_of, write_run

from hellora.reporting.overview import page_of_run
from hellora.reporting.record import RunRecord, read_run
from hellora.reporting.story import duration, story


def told(run: RunRecord) -> dict[str, tuple[str, str]]:
    return {each.title: (each.headline, " ".join(each.lines)) for each in story(run)}


def budget(**limits: Any) -> dict[str, Any]:
    return {"examples": 4, "budget": limits}


def test_a_run_that_has_ended(tmp_path: Path) -> None:
    run = read_run(ended_run(tmp_path / "run"))
    found = told(run)
    learned = "After round 1, the last. On the test split."
    assert found["What was learned"] == ("Accuracy 0.100 → 0.500", learned)
    assert found["By whom"] == ("2 clients, 2 in a round", "Served worst: client 1, accuracy 0.250.")
    costs = "2 s on the machine that simulated it. 20 s on the clients' devices, as simulated."
    assert found["At what cost"] == ("200 B up, 400 B down", costs)
    page = page_of_run(run)
    assert [each.title for each in page.story] == list(found)
    assert not {"accuracy", "sent", "worst client"} & {name for name, _ in page.facts}, "nothing is said twice"


def test_a_round_that_was_not_evaluated_lends_no_metrics(tmp_path: Path) -> None:
    sample = {"examples": 5, "of": 20, "intervals": {"accuracy": [0.2, 0.45]}}
    lines = [line(0, 0.2), line(1, 0.3, sample=sample), line(2, None)]
    run = read_run(write_run(tmp_path / "run", lines))
    assert told(run)["What was learned"] == (
        "Accuracy 0.300",
        "After round 1, the last that was evaluated; round 2 has ended, too. On 5 of 20 test examples; 95 % interval "
        "0.200 to 0.450.",
    )
    assert told(read_run(write_run(tmp_path / "none", lines[2:])))["What was learned"][0] == "Not measured yet"
    going = told(read_run(write_run(tmp_path / "going", lines[:1])))["What was learned"]
    assert going == ("Accuracy 0.200", "After round 0, the last so far.")


def test_budgets_failures_classes_and_memory_are_told_where_there_are_any(tmp_path: Path) -> None:
    limits: list[dict[str, Any]] = [{"layers": 1, "memory_bytes": 2**20}] * 2 + [{"rank": [2, 4]}, {}]
    clients = [{"id": i, **budget(**each)} for i, each in enumerate(limits)]
    peaks = {"0": {"examples": 10, "loss": 1.0, "peak_bytes": 3 * 2**20, "predicted_peak_bytes": 2**30}}
    lines = [line(0, missing={"0": "gone"}, clients=peaks), line(1, rejected={"2": "nan"})]
    scores = {"precision": 0.5, "recall": 0.5, "examples": 4}
    per_class = {"a": {**scores, "f1": 0.8}, "b": {**scores, "f1": 0.2}, "c": {**scores, "f1": 0.0, "examples": 0}}
    data = {"evaluated_on": "the test split", "test": 8}
    summary = summary_of(lines, per_class=per_class, final=metrics(0.5), data=data)
    found = told(read_run(write_run(tmp_path / "run", lines, clients, summary)))
    learned = found["What was learned"][1]
    assert learned.endswith("On the test split, 8 examples. Best recognised: a, F1 0.800. Worst: b, F1 0.200.")
    assert found["By whom"][1] == (
        "Budgets: 2 with 1 of 2 layers, 1.0 MiB of memory; 1 with rank 2/4; 1 without a limit. "
        "2 of 4 answers were missing or could not be used. Served worst: client 1, accuracy 0.250."
    )
    assert found["At what cost"][1].endswith("At most 3.0 MiB of memory at a client, measured.")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (119, "119 s"), (150, "2 min"), (7500, "2 h 05 min"), (3600 * 30, "30 h 00 min")],
)
def test_a_duration_is_written_for_a_person(seconds: float, words: str) -> None:
    assert duration(seconds) == words
