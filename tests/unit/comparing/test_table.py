"""The statistics of a comparison by hand, and what is shown of them."""

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from rich.console import Console

from hellora.comparing.table import (
    Cell,
    Interval,
    Run,
    as_csv,
    as_markdown,
    as_table,
    cell_text,
    footnotes,
    group_headings,
    headings,
    interval_of,
    is_above,
    numbers,
    on_screen,
    rows_of,
    uplink_budgets,
)

T2, T1 = 4.302652729911275, 12.706204736432095  # Student's t, 0.975, of 2 degrees of freedom and of 1


def run_of(
    accuracy: Sequence[float | None],
    uplink: int = 10,
    groups: Mapping[int, float] | None = None,
    worst: float | None = 0.25,
    metric: str = "accuracy",
    evaluated_on: str = "the test split",
    peaks: Mapping[int, int] | None = None,
) -> Run:
    """A run whose rounds end with these accuracies (None: not evaluated) and send `uplink` bytes up each."""
    lines = [
        {
            "round": i,
            "metrics": None if value is None else {metric: value},
            "clients": {str(client): {"peak_bytes": peak} for client, peak in (peaks or {}).items()},
            "uplink_bytes": uplink,
            "downlink_bytes": 3 * uplink,
            "seconds": 0.5,
        }
        for i, value in enumerate(accuracy)
    ]
    summary = {
        "initial": {metric: 0.1},
        "final": {metric: accuracy[-1]},
        "groups": [
            {"layers": layers, "rank": 8, "clients": 2, "metrics": {metric: value}}
            for layers, value in (groups or {}).items()
        ],
        "worst_client": worst,
        "uplink_bytes": uplink * len(lines),
        "data": {"evaluated_on": evaluated_on},
    }
    return Run(summary, lines)


def runs_of(table: Mapping[tuple[str, str], Sequence[float]], **options: Any) -> dict[Cell, Run]:
    """One run of one round per setting, method and seed 0, 1, …, with that accuracy."""
    return {
        Cell(setting, method, seed): run_of([value], **options)
        for (setting, method), values in table.items()
        for seed, value in enumerate(values)
    }


# ----------------------------------------------------------------------------------------------------------- statistics


def test_the_interval_is_students_t_by_hand() -> None:
    """Of 1, 2, 3: s = 1, so half is t / √3. Of 4, 8: s = 2√2, √n = √2, so half is 2t."""
    three, two = interval_of([1.0, 2.0, 3.0]), interval_of([4.0, 8.0])
    assert (three.mean, three.n, two.mean, two.n) == (2.0, 3, 6.0, 2)
    assert three.half == pytest.approx(T2 / math.sqrt(3))
    assert two.half == pytest.approx(2 * T1)
    assert interval_of([0.7]) == Interval(0.7, None, 1)
    assert interval_of([0.5, 0.5]) == Interval(0.5, 0.0, 2)


def test_who_is_above_is_decided_by_paired_differences() -> None:
    """The seeds differ by far more than the methods, so that unpaired intervals would hide what pairs show."""
    theirs = {0: 0.20, 1: 0.50, 2: 0.80}
    assert is_above({0: 0.21, 1: 0.51, 2: 0.81}, theirs) is True
    assert is_above({0: 0.19, 1: 0.49, 2: 0.79}, theirs) is False
    assert is_above({0: 0.21, 1: 0.51, 2: 0.80}, theirs) is False  # 0.01, 0.01, 0: mean 0.0067, half 0.0143
    assert is_above({0: 0.19, 1: 0.49, 2: 0.79}, theirs, lower_is_better=True) is True
    assert is_above(theirs, theirs) is False
    assert is_above({0: 0.9, 7: 0.9}, theirs) is None  # one pair has no interval
    assert is_above({0: 0.21, 1: 0.51, 7: 0.0}, theirs) is True  # seed 7 has no partner


# -------------------------------------------------------------------------------------------------------------- budgets


def test_a_whole_run_by_column() -> None:
    found = numbers(run_of([0.3, None, 0.5], groups={2: 0.4, 4: 0.5}))
    assert found == {
        "accuracy": 0.5,
        "worst_client": 0.25,
        "group 2 layers, rank 8": 0.4,
        "group 4 layers, rank 8": 0.5,
        "uplink_bytes": 30,
        "downlink_bytes": 90,
        "seconds": 1.5,
        "rounds": 3,
    }


@pytest.mark.parametrize(
    ("budget", "rounds", "accuracy"),
    [
        (9, 0, 0.1),  # the first round is too much: what it began with
        (10, 1, 0.3),
        (29, 1, 0.3),  # round 1 was not evaluated
        (30, 3, 0.5),
        (49, 4, 0.4),  # the last within, not the best
        (50, 5, 0.6),
        (10**9, 5, 0.6),
    ],
)
def test_a_budget_cuts_at_the_last_evaluated_round_within_it(budget: int, rounds: int, accuracy: float) -> None:
    found = numbers(run_of([0.3, None, 0.5, 0.4, 0.6], groups={2: 0.5, 4: 0.6}), budget)
    assert (found["rounds"], found["accuracy"]) == (rounds, accuracy)
    assert (found["uplink_bytes"], found["downlink_bytes"], found["seconds"]) == (10 * rounds, 30 * rounds, rounds / 2)
    whole = rounds == 5
    assert ("worst_client" in found) == ("group 2 layers, rank 8" in found) == whole  # only measured at the end


def test_the_budget_is_the_least_whole_run_of_the_same_setting_and_seed() -> None:
    totals = {("iid", "a", 0): 30, ("iid", "b", 0): 20, ("iid", "a", 1): 10, ("iid", "b", 1): 50, ("far", "a", 0): 70}
    runs = {Cell(*key): run_of([0.5], uplink=total) for key, total in totals.items()}
    found = {(cell.setting, cell.method, cell.seed): budget for cell, budget in uplink_budgets(runs).items()}
    assert found == {key: {("iid", 0): 20, ("iid", 1): 10, ("far", 0): 70}[key[0], key[2]] for key in totals}


# ----------------------------------------------------------------------------------------------------------------- rows


def test_what_is_kept_of_the_iid_accuracy_is_by_seed() -> None:
    """0.4 of 0.8 and 0.1 of 0.4: 0.5 and 0.25, not 0.25 of 0.6."""
    runs = runs_of({("iid", "a"): [0.8, 0.4], ("skewed", "a"): [0.4, 0.1], ("skewed", "b"): [0.4, 0.1]})
    at_home, skewed, without = rows_of(runs)
    assert skewed.values["kept"].mean == pytest.approx(0.375)
    assert skewed.values["kept"].half == pytest.approx(T1 * 0.125)  # s = 0.25/√2, √n = √2
    assert "kept" not in at_home.values
    assert "kept" not in without.values  # no such run in iid


def test_marks() -> None:
    runs = runs_of(
        {
            ("iid", "better"): [0.61, 0.71, 0.81],
            ("iid", "random_layers"): [0.60, 0.70, 0.80],
            ("iid", "noisy"): [0.90, 0.40, 0.79],
            ("alone", "better"): [0.2, 0.3, 0.4],
        }
    )
    rows = {(row.setting, row.method): row for row in rows_of(runs)}
    assert {key: (row.best, row.above_reference) for key, row in rows.items()} == {
        ("iid", "better"): (True, True),
        ("iid", "random_layers"): (False, None),
        ("iid", "noisy"): (False, False),
        ("alone", "better"): (False, None),
    }
    assert cell_text(rows["iid", "better"], "accuracy") == "0.710 ± 0.248"  # t · 0.1 / √3
    assert cell_text(rows["iid", "noisy"], "accuracy").endswith("*")
    assert sum("not above random_layers" in note for note in footnotes(list(rows.values()))) == 1
    assert not any("random_layers" in note for note in footnotes([rows["iid", "better"]]))


def test_of_one_seed_nothing_is_said_about_differences() -> None:
    rows = rows_of(runs_of({("iid", "a"): [0.2], ("iid", "random_layers"): [0.3]}))
    assert [(row.best, row.above_reference) for row in rows] == [(False, None), (True, None)]
    assert [cell_text(row, "accuracy") for row in rows] == ["0.200", "0.300"]
    assert [row.values["accuracy"].half for row in rows] == [None, None]


def test_a_lower_loss_is_better() -> None:
    runs = runs_of({("x", "a"): [1.0, 1.1], ("x", "random_layers"): [2.0, 2.1]}, metric="loss", worst=None)
    a, reference = rows_of(runs)
    assert (a.best, a.above_reference, reference.best) == (True, True, False)
    assert list(headings([a, reference])) == ["loss", "uplink_bytes", "downlink_bytes", "seconds", "rounds", "n"]


def test_models_of_clients_own_are_not_compared_with_the_global_one() -> None:
    runs = runs_of({("x", "a"): [0.5, 0.6], ("x", "random_layers"): [0.4, 0.5]})
    runs |= runs_of({("x", "own"): [0.9, 0.9]}, evaluated_on="the clients' held-out examples")
    rows = rows_of(runs)
    assert [(row.method, row.best, row.above_reference) for row in rows] == [
        ("a", True, True),
        ("random_layers", False, None),
        ("own", False, None),
    ]
    assert cell_text(rows[2], "accuracy") == "0.900 ± 0.000†"
    assert any(note.startswith("†") for note in footnotes(rows))


def test_a_language_model_is_not_compared_with_a_classifier() -> None:
    runs = runs_of({("x", "a"): [0.5, 0.6], ("x", "random_layers"): [0.4, 0.5]})
    runs |= runs_of({("x", "language"): [2.0, 2.1]}, metric="loss", worst=None)
    rows = rows_of(runs)
    assert [(row.method, row.best, row.above_reference) for row in rows] == [
        ("a", True, True),
        ("random_layers", False, None),
        ("language", False, None),
    ]


def test_a_column_that_a_seed_lacks_is_empty() -> None:
    """The budget cuts seed 1 short, so the worst client of the row is not that of seed 0 alone."""
    runs = {Cell("x", "a", 0): run_of([0.5]), Cell("x", "a", 1): run_of([0.5, 0.6])}
    (row,) = rows_of(runs, dict.fromkeys(runs, 10))
    assert row.values["accuracy"].n == 2
    assert row.values["rounds"].mean == 1
    assert "worst_client" not in row.values


def test_groups_are_headed_by_what_tells_them_apart() -> None:
    rows = rows_of({Cell("x", "a", 0): run_of([0.5], groups={1: 0.4, 4: 0.5})})
    assert [text for name, text in headings(rows).items() if name.startswith("group")] == ["1 layer", "4 layers"]
    rows = rows_of({Cell("x", "a", 0): run_of([0.5], groups={4: 0.5})})
    assert not any(name.startswith("group") for name in headings(rows))  # it would be the accuracy again


def test_groups_with_and_without_a_budget_in_bytes_stand_beside_each_other() -> None:
    assert group_headings(["group 1 layer, rank 8, 1.0 GiB", "group 1 layer, rank 8", "group 2 layers, rank 8"]) == {
        "group 1 layer, rank 8, 1.0 GiB": "1 layer, 1.0 GiB",
        "group 1 layer, rank 8": "1 layer",
        "group 2 layers, rank 8": "2 layers",
    }
    assert group_headings(["group 1 layer, rank 8, 1.0 GiB", "group 1 layer, rank 8"]) == {
        "group 1 layer, rank 8, 1.0 GiB": "1.0 GiB",
        "group 1 layer, rank 8": "1 layer, rank 8",
    }


# -------------------------------------------------------------------------------------------------------- what is shown


def test_the_table_in_each_form() -> None:
    runs = runs_of({("iid", "a"): [0.5, 0.7], ("iid", "random_layers"): [0.7, 0.4]}, groups={2: 0.4, 4: 0.6})
    rows = rows_of(runs, tuned={("iid", "a"): {"train.lr": 0.01}})
    notes = footnotes(rows, ["a remark"])
    assert as_markdown(rows, notes).startswith(
        "## iid\n\n"
        "| method | accuracy | worst client | 2 layers | 4 layers | up | down | s | rounds | tuned | n |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|\n"
        "| a | **0.600 ± 1.271\\*** | 0.250 ± 0.000 | 0.400 ± 0.000 | 0.600 ± 0.000 | 10 B | 30 B | 0 | 1 "
        "| train.lr 0.01 | 2 |\n"
        "| random_layers | 0.550 ± 1.906 |"
    )
    assert "\n- \\* not above random_layers" in as_markdown(rows, notes)
    assert as_markdown(rows, notes).endswith("\n- a remark\n")
    first, second = csv.DictReader(io.StringIO(as_csv(rows)))
    assert (first["setting"], first["method"], first["n"], first["tuned"]) == ("iid", "a", "2", "train.lr=0.01")
    assert float(first["accuracy"]) == pytest.approx(0.6)
    assert float(first["accuracy ±"]) == pytest.approx(T1 * 0.1)
    assert (first["uplink_bytes"], first["best"], first["above random_layers"]) == ("10.0", "True", "False")
    assert second["above random_layers"] == ""
    table = json.loads(json.dumps(as_table(rows, notes, {"cells/iid/b/seed-0": "why"})))
    assert table["rows"][0]["values"]["accuracy"] == {"mean": 0.6, "half": pytest.approx(T1 * 0.1), "n": 2}
    assert table["rows"][0]["seeds"] == [0, 1]
    assert table["failed"] == {"cells/iid/b/seed-0": "why"}


def test_the_best_mean_is_bold_on_screen() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system="standard")
    for table in on_screen(rows_of(runs_of({("iid", "a"): [0.5], ("iid", "b"): [0.7]}))):
        console.print(table)
    file = console.file
    assert isinstance(file, io.StringIO)
    text = file.getvalue()
    assert re.search(r"\x1b\[1m *0\.700", text)
    assert not re.search(r"\x1b\[1m *0\.500", text)


def test_the_peak_is_the_most_that_any_client_held() -> None:
    run = run_of([0.2, 0.4], peaks={0: 3000, 4: 500})
    assert numbers(run)["peak_bytes"] == 3000
    rows = rows_of({Cell("iid", "a", 0): run})
    assert "| peak |" in as_markdown(rows, [])
    assert "| 2.9 KiB |" in as_markdown(rows, [])
