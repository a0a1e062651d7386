"""Early stopping: which evaluation ends a run, with numbers worked by hand."""

import math

import pytest

from hellora.core.errors import InputError
from hellora.experiments.config import check
from hellora.experiments.stopping import StopSettings


def measured(*values: float, metric: str = "accuracy") -> list[tuple[int, dict[str, float]]]:
    """Rounds 1, 3, 5 …, as `eval_every = 2` has them."""
    return [(1 + 2 * place, {metric: value}) for place, value in enumerate(values)]


def test_patience_counts_evaluations_that_are_no_better_than_the_first_best() -> None:
    stop = StopSettings(patience=2)
    values = (0.5, 0.7, 0.7, 0.6)
    assert [stop.ended(measured(*values[:n])) is not None for n in range(5)] == [False, False, False, False, True]
    found = stop.ended(measured(*values))
    assert found is not None
    assert (found.round, found.metric, found.best, found.best_round) == (7, "accuracy", 0.7, 3)
    assert found.why == "validation accuracy has not been better than 0.700, after round 3, for 2 evaluations"
    assert stop.ended(measured(0.5, 0.7, 0.6, 0.71)) is None


def test_a_target_ends_a_run_when_it_is_reached_and_lower_is_better_for_a_loss() -> None:
    assert StopSettings(target=0.7).ended(measured(0.5, 0.69)) is None
    found = StopSettings(target=0.7).ended(measured(0.5, 0.7))
    assert found is not None
    assert found.why == "validation accuracy 0.700 has reached stop.target = 0.7"
    losses = measured(0.9, 0.5, metric="loss")
    assert StopSettings(target=0.4).ended(losses) is None
    assert StopSettings(target=0.5).ended(losses) is not None
    assert StopSettings("loss", patience=1).ended(measured(0.5, 0.6, metric="loss")) is not None
    assert StopSettings("loss", patience=1).ended(measured(0.6, 0.5, metric="loss")) is None


def test_a_round_without_the_metric_or_with_nan_was_not_better() -> None:
    stop = StopSettings("auroc", patience=1)
    rounds = [(0, {"auroc": 0.5}), (1, {"accuracy": 0.9}), (2, {"auroc": math.nan})]
    assert stop.ended(rounds[:1]) is None
    assert stop.ended(rounds[:2]) is not None
    assert stop.ended(rounds[1:2]) is None
    found = StopSettings("auroc", patience=2).ended(rounds)
    assert found is not None
    assert found.best == 0.5


def test_without_patience_or_target_nothing_ends() -> None:
    assert StopSettings().ended(measured(0.5, 0.1)) is None


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"stop": {"patience": -1}}, r"stop: patience must be 0 \(no limit\) or a number of evaluations, not -1"),
        ({"stop": {"metric": "loss"}}, r"stop: metric = 'loss' alone ends no run: set patience, such as 3, or target"),
        ({"stop": {"patience": 3}}, "what is tested on must not choose the end: set data.validation, such as 0.1"),
        (
            {
                "stop": {"patience": 3},
                "data": {"validation": 0.1},
                "method": {"start": "ridge", "head": "closed_form"},
            },
            "before its last round, after which the head is solved again",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(table: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        check("it", table)
    assert "\n" not in str(error.value)
