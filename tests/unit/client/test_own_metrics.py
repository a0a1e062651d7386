"""Metrics besides a task's own: scikit-learn's numbers, a user's functions, and what these may do wrong."""

import logging
import math
from pathlib import Path
from typing import Any

import bases
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, matthews_corrcoef, roc_auc_score

from hellora.client.evaluation import evaluate
from hellora.client.own_metrics import BUILT_IN, Metric, more_metrics
from hellora.core.errors import InputError
from hellora.core.metrics import asked_for
from hellora.experiments.config import check, read_experiment
from hellora.experiments.registry import metric

RNG = np.random.default_rng(0)
TRUE, SAID = RNG.integers(0, 3, 40), RNG.integers(0, 3, 40)
P = RNG.dirichlet(np.ones(3), 40).astype(np.float32)


def built_in(name: str, said: Any = SAID, true: Any = TRUE, p: Any = P) -> dict[str, float]:
    return Metric(name, BUILT_IN[name]).of(list(said), list(true), p)


def test_those_with_a_name_are_scikit_learns() -> None:
    assert built_in("matthews") == {"matthews": pytest.approx(matthews_corrcoef(TRUE, SAID))}
    assert built_in("balanced_accuracy") == {"balanced_accuracy": pytest.approx(balanced_accuracy_score(TRUE, SAID))}
    one_vs_rest = roc_auc_score(TRUE, P.astype(float), multi_class="ovr", average="macro")
    assert built_in("auroc") == {"auroc": pytest.approx(one_vs_rest, abs=1e-6)}
    two, p = (TRUE > 0).astype(int), np.stack([1 - P[:, 2], P[:, 2]], axis=1)
    assert built_in("auroc", true=two, p=p) == {"auroc": pytest.approx(roc_auc_score(two, P[:, 2]), abs=1e-6)}


def test_of_one_class_alone_there_is_no_curve(caplog: pytest.LogCaptureFixture) -> None:
    """It is left out, and the run goes on."""
    with caplog.at_level(logging.WARNING):
        assert built_in("auroc", true=[0] * 40) == {}
    assert "auroc of 'auroc' is nan here, and is left out" in caplog.text
    assert built_in("matthews", said=[0] * 40, true=[0] * 40) == {"matthews": 0}
    assert built_in("balanced_accuracy", said=[1, 2], true=[1, 1]) == {"balanced_accuracy": 0.5}


def test_an_evaluation_gives_own_functions_what_it_knows(tiny_bert: Path) -> None:
    """Probabilities beside the predictions of the same examples, whatever batches these were in."""
    base, rows, seen = bases.load(tiny_bert), bases.texts(10), dict[str, Any]()

    def brier(predictions: Any, references: Any, probabilities: Any) -> float:
        seen.update(predictions=predictions, references=references, probabilities=probabilities)
        return float(((probabilities - np.eye(3)[references]) ** 2).sum(1).mean())

    own = Metric("mine.py:brier", brier), Metric("m:both", lambda p, r: {"a": int((p == r).sum()), "b": np.float32(1)})
    found = evaluate(bases.acting_adapter(base), base, bases.MEAN_POOLING, rows, 4, more=own)
    assert seen["probabilities"].shape == (10, 3)
    assert seen["probabilities"].argmax(1).tolist() == seen["predictions"].tolist()
    assert found.metrics["both.a"] == round(found.metrics["accuracy"] * 10)
    assert 0 < found.metrics["brier"] < 2
    assert list(found.metrics) == ["accuracy", "macro_f1", "micro_f1", "loss", "brier", "both.a", "both.b"]
    assert asked_for(["mine.py:brier", "m:both"], found.metrics) == ["brier", "both.a", "both.b"]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda *_: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda _: 1.0, "raised TypeError"),
        (lambda *_: "high", "returned 'high', not a number"),
        (lambda *_: {"a": [1]}, r"returned {'a': \[1\]}, not a number or a dictionary of numbers"),
    ],
)
def test_what_a_function_does_wrong_is_said_with_its_name(function: Any, words: str) -> None:
    with pytest.raises(InputError, match=rf"^task.metrics: 'mine.py:f' {words}.*: correct it$"):
        more_metrics([Metric("mine.py:f", function)], [0], [0], None)


def test_nan_of_one_value_leaves_the_others(caplog: pytest.LogCaptureFixture) -> None:
    found = Metric("m:f", lambda *_: {"a": math.nan, "b": 2, "c": math.inf}).of([1], [1], None)
    assert found == {"f.b": 2.0}
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "task.metrics: f.a of 'm:f' is nan here",
        "task.metrics: f.c of 'm:f' is inf here",
    ]


# ------------------------------------------------------------------------------------------------------------- settings


def test_a_file_may_name_a_function_only_if_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trap = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\ndef f(p, r): return 1.0\n"
    (tmp_path / "trap.py").write_text(trap)
    (tmp_path / "x.toml").write_text('base = "quickstart"\n[task]\nmetrics = ["matthews", "trap.py:f"]\n')
    with pytest.raises(InputError, match=r"x.toml names code .*\(trap.py:f\).* --allow trap.py:f"):
        read_experiment("x.toml")
    assert not (tmp_path / "ran").exists()
    experiment = read_experiment("x.toml", allow=["trap.py"])
    assert [each.name for each in experiment.metrics] == ["matthews", "f"]
    assert experiment.table["task"]["metrics"] == ["matthews", f"{tmp_path}/trap.py:f"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mathews", "there is no metric 'mathews': did you mean 'matthews'"),
        ("gone.py:f", "'gone.py:f' cannot be imported: ImportError: there is no file"),
        ("math:pi", "'math:pi' is no function"),
    ],
)
def test_a_metric_that_is_none_is_refused(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        metric(name)


def test_metrics_that_the_task_cannot_have_are_refused() -> None:
    language = {"name": "causal_lm", "metrics": ["matthews"]}
    with pytest.raises(
        InputError, match="'matthews' compares predictions with what is right, and causal_lm makes none"
    ):
        check("x", {"task": language, "data": {"partitioner": "iid"}})
    with pytest.raises(InputError, match="two of the name 'sqrt'"):
        check("x", {"task": {"metrics": ["math:sqrt", "numpy:sqrt"]}})
