"""The statistics of a comparison, by hand."""

import math

import pytest
from finished_runs import run_of, runs_of

from hellora.comparing.runs import Cell
from hellora.comparing.statistics import (
    Interval,
    curve_of,
    difference,
    interval_of,
    is_above,
    numbers,
    rows_of,
    uplink_budgets,
)
from hellora.comparing.target import spent_until

T2, T1 = 4.302652729911275, 12.706204736432095  # Student's t, 0.975, of 2 degrees of freedom and of 1


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
    assert difference({0: 0.25, 7: 0.9}, theirs) == Interval(pytest.approx(0.05), None, 1)
    assert difference({7: 0.9}, theirs) is None


def test_a_curve_is_of_the_rounds_that_all_seeds_were_measured_in() -> None:
    runs = [run_of([0.2, None, 0.4]), run_of([0.4, 0.5, 0.6, 0.9])]
    found = dict(curve_of(runs, "accuracy"))
    assert {place: interval.mean for place, interval in found.items()} == pytest.approx({0: 0.1, 1: 0.3, 3: 0.5})
    assert found[1].half == pytest.approx(T1 * 0.1)


# ------------------------------------------------------------------------------------------------- the cost of a target


def test_the_cost_of_a_target_is_what_was_spent_until_it_is_reached_first() -> None:
    """A round sends 10 bytes up and 30 down, and takes 2 simulated seconds."""
    run = run_of([0.3, None, 0.7, 0.6], clock=2.0)
    spent = {"rounds_to_target": 3.0, "bytes_to_target": 120.0, "seconds_to_target": 6.0}
    assert spent_until(run, 0.65) == (True, spent)
    assert spent_until(run, 0.1) == (True, dict.fromkeys(spent, 0.0)), "it began there"
    assert spent_until(run, 0.8) == (False, {name: value / 3 * 4 for name, value in spent.items()})
    assert "seconds_to_target" not in spent_until(run_of([0.3]), 0.2)[1]


def test_a_loss_reaches_a_target_from_above() -> None:
    run = run_of([2.0, 1.5, 1.2], metric="loss")
    vars(run)["summary"] = {**run.summary, "initial": {"loss": 3.0}}
    assert spent_until(run, 1.5)[1]["rounds_to_target"] == 2
    assert spent_until(run, 1.0)[0] is False


def test_seeds_that_never_reach_a_target_leave_no_mean_over_the_lucky_ones() -> None:
    curves = {"sure": ([0.3, 0.8], [0.8, 0.9], [0.2, 0.8]), "lucky": ([0.8, 0.8], [0.2, 0.3], [0.1, 0.2])}
    runs = {Cell("x", m, seed): run_of(values) for m, each in curves.items() for seed, values in enumerate(each)}
    sure, lucky = rows_of(runs, target=0.75)
    assert sure.values["rounds_to_target"] == interval_of([2.0, 1.0, 2.0])
    assert lucky.values["rounds_to_target"] == Interval(pytest.approx((1 + 2 + 2) / 3), None, 3, never=2)
    assert "rounds_to_target" not in rows_of(runs)[0].values


# -------------------------------------------------------------------------------------------------------------- budgets


def test_a_whole_run_by_column() -> None:
    found = numbers(run_of([0.3, None, 0.5], groups={2: 0.4, 4: 0.5}))
    assert found == {
        "accuracy": 0.5,
        "worst_client": 0.25,
        "spread": 0.5,
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


def test_what_lora_adds_is_over_its_own_head_or_over_the_head_alone() -> None:
    runs = runs_of(
        {("base", "ridge_head"): [0.80, 0.70], ("base", "plain"): [0.85, 0.72], ("base", "solved"): [0.9, 0.8]}
    )
    for seed, alone in ((0, 0.82), (1, 0.75)):
        runs[Cell("base", "solved", seed)].summary["solved"] = {"accuracy": alone}  # type: ignore[index]
    found = {row.method: row.values.get("lora_adds") for row in rows_of(runs)}
    assert found["ridge_head"] is None
    assert found["plain"] is not None
    assert found["plain"].mean == pytest.approx((0.05 + 0.02) / 2)
    assert found["solved"] is not None
    assert found["solved"].mean == pytest.approx((0.08 + 0.05) / 2)


def test_a_budget_that_no_round_fits_leaves_nothing_to_add_to() -> None:
    """What the run came to is from before its head was solved."""
    run = run_of([0.9, 0.95])
    run.summary["solved"] = {"accuracy": 0.85}  # type: ignore[index]
    assert "lora_adds" not in numbers(run, 9)
    assert numbers(run, 10)["lora_adds"] == pytest.approx(0.05)
