"""A run that ends early: by validation data alone, at the same round whether it was killed or not."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_runs import Listening, bias_of, experiment_of, light, outcome, run_small, small_setup

import hellora.runs.run as running
from hellora.client.evaluation import Evaluation
from hellora.core.errors import InputError
from hellora.experiments.config import check

VALIDATED = (0.1, 0.4, 0.4, 0.3, 0.9)  # after rounds 0 to 4
STOP = {"stop": {"patience": 2}, "data": {"clients": 2, "validation": 0.2}}


@pytest.fixture(autouse=True)
def lightly(monkeypatch: pytest.MonkeyPatch) -> None:
    light(monkeypatch)


class Killed(Listening):
    """A Progress that ends the run after a round, before anything else is done."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def round_finished(self, line: Any) -> None:
        if line["round"] == self.after:
            raise KeyboardInterrupt


def run(out: Path, heard: Listening, resume: bool = False, values: Sequence[float] = VALIDATED, **changes: Any) -> Any:
    """Run with these values on validation data; on the test data every round is better than the one before."""

    def setup(experiment: Any, _: Any) -> Any:
        found = small_setup(experiment, lambda state: {**bias_of(state), "accuracy": 0.1 * state.round})
        found.validate = lambda state: Evaluation({"accuracy": values[state.round - 1]})
        return found

    experiment = check("small", {**experiment_of().table, **STOP, **changes})
    return running.run_experiment(experiment, out, heard, resume, setup)


def test_a_run_ends_by_validation_data_and_says_so(tmp_path: Path) -> None:
    heard = Listening()
    summary = run(tmp_path, heard)
    why = "validation accuracy has not been better than 0.400, after round 1, for 2 evaluations"
    assert summary["rounds"] == 4
    assert summary["stopped"] == {"round": 3, "why": why, "metric": "accuracy", "best": 0.4, "best_round": 1}
    assert summary["final"]["accuracy"] == pytest.approx(0.4), "the test data were better in every round"
    assert heard.notes == [f"stopped early: {why}"]
    lines = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [line["validation"]["accuracy"] for line in lines] == [0.1, 0.4, 0.4, 0.3]


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_run_that_was_killed_ends_after_the_same_round(tmp_path: Path, after: int) -> None:
    """Also one that was killed after the round that ends it: nothing more is trained."""
    run(tmp_path / "alone", Listening())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Killed(after))
    heard = Listening()
    run(tmp_path / "killed", heard, resume=True)
    assert heard.first_round == after + 1
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "alone")


def test_a_target_ends_a_run(tmp_path: Path) -> None:
    assert run(tmp_path, Listening(), stop={"target": 0.4})["stopped"]["round"] == 1


def test_without_stop_a_run_is_as_it_was(tmp_path: Path) -> None:
    run_small(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert "stopped" not in summary
    assert json.loads((tmp_path / "rounds.jsonl").read_text().splitlines()[0])["validation"] is None


def test_a_metric_that_is_not_measured_is_refused_before_round_0(tmp_path: Path) -> None:
    class Untouched(Listening):
        def started(self, *_: Any) -> None:
            pytest.fail("the run began")

    with pytest.raises(InputError, match=r"stop\.metric = 'acuracy' is not measured: did you mean 'accuracy'\?"):
        run(tmp_path / "out", Untouched(), values=(0.1,), stop={"metric": "acuracy", "patience": 1})
    assert not (tmp_path / "out").exists()


def test_rounds_can_be_left_and_gone_on_with(tmp_path: Path) -> None:
    """What the loop's own time is worth is nothing to a round; a folder that was left is whole, and free."""
    run_small(tmp_path / "alone")
    rounds = running.run_rounds(
        experiment_of(), tmp_path / "left", Listening(), preparing=lambda e, _: small_setup(e, bias_of)
    )
    for line in rounds:
        if line["round"] == 2:
            break
    rounds.close()
    assert not (tmp_path / "left" / "summary.json").exists()
    assert run_small(tmp_path / "left", resume=True).first_round == 3
    assert outcome(tmp_path / "left") == outcome(tmp_path / "alone")
