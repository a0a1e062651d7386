"""A run whose clients measure models of their own: means of what they tell, each client by what it told last."""

from typing import Any

import pytest

from hellora.core.held_out import HeldOut
from hellora.core.per_class import ClassCounts, PerClass
from hellora.runs.evaluations import told


def sums(examples: int, right: int, loss: float) -> dict[str, Any]:
    return {"loss": 9.0, "held_out_examples": examples, "held_out_right": right, "held_out_loss": loss}


def test_a_mean_is_by_examples_and_of_each_client_the_last_counts() -> None:
    first = {0: sums(10, 0, 30.0), 1: sums(2, 1, 4.0)}
    found = told([first, {0: sums(10, 8, 5.0), 2: {"loss": 1.0}}], {})
    assert found is not None
    assert found.clients == {0: {"accuracy": 0.8, "loss": 0.5}, 1: {"accuracy": 0.5, "loss": 2.0}}
    assert found.rows == {0: 10, 1: 2}
    assert found.metrics == pytest.approx({"accuracy": 9 / 12, "loss": 9 / 12})
    assert found.mean_over([1]) == {"accuracy": 0.5, "loss": 2.0}
    assert found.mean_over([]) == {}


def test_where_nobody_told_there_is_nothing() -> None:
    assert told([], {}) is None
    assert told([{0: {"loss": 1.0, "examples": 4}}], {}) is None


def test_what_is_told_of_classes_adds_up_and_of_others_than_the_run_s_does_not_count() -> None:
    counts = {"0": ClassCounts(6, 5, 4), "1": ClassCounts(4, 5, 3), "4000000000": ClassCounts()}
    told_last = HeldOut(10, 5.0, 7, counts).as_metrics()
    rounds = [{0: sums(10, 0, 30.0), 1: HeldOut(1, 1.0, 0, {"1": ClassCounts(1), "0": ClassCounts(0, 1)}).as_metrics()}]
    found = told([*rounds, {0: told_last}], {"0": 0, "1": 1})
    assert found is not None
    assert found.per_class == PerClass({0: ClassCounts(6, 6, 4), 1: ClassCounts(5, 5, 3)})
