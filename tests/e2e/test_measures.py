"""Classes by name, metrics of one's own and a weighted loss, from a parquet file as GLUE has it to a report."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tomli_w
from datasets import ClassLabel, Dataset, Features, Value

NAMES = ["not_equivalent", "equivalent"]
MINE = """
def bias(predictions, references, probabilities):
    assert probabilities.shape == (len(predictions), 2)
    return {"worst": abs(probabilities.mean(0)[1] - references.mean()), "seen": len(references)}
"""


@pytest.fixture
def pairs(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment on pairs of texts that speak of one topic or do not, and a metric beside it."""
    folder = tmp_path / "mrpc"
    folder.mkdir()
    features = Features({"sentence1": Value("string"), "sentence2": Value("string"), "label": ClassLabel(names=NAMES)})
    for split, count, seed in (("train", 72, 1), ("test", 30, 2)):
        texts = tiny_models.sentences(2 * count, seed)
        both = [(one, other) for one, other in zip(texts[::2], texts[1::2], strict=True)]
        rows = {
            "sentence1": [one for (one, _), _ in both],
            "sentence2": [one if i % 3 else other for i, ((one, _), (other, _)) in enumerate(both)],
            "label": [int(i % 3 > 0) for i in range(count)],
        }
        Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{split}.parquet"))
    (tmp_path / "mine.py").write_text(MINE)
    table = tomllib.loads(small.read_text())
    table |= {
        "rounds": 1,
        "method": {"allocator": "everything"},
        "task": {"metrics": ["matthews", "auroc", "mine.py:bias"]},
    }
    table["task"] |= {"name": "sequence_classification", "class_weights": "balanced", "label_smoothing": 0.1}
    table["data"] |= {"name": str(folder), "text": "sentence1", "text_pair": "sentence2", "partitioner": "iid"}
    table["data"]["proxy_examples"] = 0  # all of the test split is tested on
    for key in ("alpha", "min_examples"):
        del table["data"][key]
    (tmp_path / "pairs.toml").write_text(tomli_w.dumps(table))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_glues_pairs_to_the_report(hellora: Callable[..., Any], pairs: Path) -> None:
    refused = hellora("run", "pairs.toml", "--out", "run")
    assert (refused.status, "--allow mine.py:bias" in refused.err) == (2, True)
    done = hellora("run", "pairs.toml", "--out", "run", "--allow", "mine.py")
    assert done.status == 0, done.err
    assert "matthews" in done.out
    assert "bias.seen 30.000" in done.out
    summary = json.loads((pairs / "run" / "summary.json").read_text())
    asked = ["matthews", "auroc", "bias.worst", "bias.seen"]
    assert summary["asked_metrics"] == asked
    assert set(asked) < summary["initial"].keys() & summary["final"].keys() & summary["groups"][0]["metrics"].keys()
    assert list(summary["per_class"]) == NAMES
    assert [scores["examples"] for scores in summary["per_class"].values()] == [10, 20]
    assert summary["confusion"]["labels"] == NAMES
    counts = summary["confusion"]["counts"]
    assert [sum(row) for row in counts] == [10, 20]
    right = sum(counts[i][i] for i in range(2))
    assert summary["final"]["accuracy"] == pytest.approx(right / 30)
    (line,) = map(json.loads, (pairs / "run" / "rounds.jsonl").read_text().splitlines())
    assert line["per_class"] == summary["per_class"], "the last round is evaluated on all examples"

    predicted = hellora("predict", "run/adapter", "mrpc/test.parquet", "--json")
    assert predicted.status == 0, "an adapter needs no code of its metrics"
    assert json.loads(predicted.out.splitlines()[0])["probabilities"].keys() == set(NAMES)
    metrics = ("--set", "task.metrics=['auroc', 'mine.py:bias']")
    measured = hellora("evaluate", "run/adapter", "mrpc/test.parquet", *metrics, "--out", "found.json")
    assert measured.status == 0, measured.err
    assert "not_equivalent" in measured.out
    assert "how many of each class (a row) are taken for which (a column)" in measured.out
    printed = hellora("evaluate", "run/adapter", "mrpc/test.parquet", "--json")
    assert json.loads(printed.out)["confusion"] == summary["confusion"]
    found = json.loads((pairs / "found.json").read_text())
    assert found["per_class"] == summary["per_class"]
    assert found["confusion"] == summary["confusion"]
    assert found["bias.worst"] == pytest.approx(summary["final"]["bias.worst"], abs=1e-6)
    assert hellora("report", "run").status == 0
    page = (pairs / "run" / "report.html").read_text()
    assert "How well each class is recognised" in page
    assert "Bias.worst" in page


def test_a_metric_that_fails_later_stops_the_run_and_resume_goes_on(hellora: Callable[..., Any], pairs: Path) -> None:
    """The first evaluation is before training, the next one after round 0."""
    counting = "CALLS = []\ndef bias(p, r):\n    CALLS.append(1)\n    return 1 / (2 - len(CALLS))\n"
    (pairs / "mine.py").write_text(counting)
    stopped = hellora("run", "pairs.toml", "--out", "run", "--allow", "mine.py")
    assert stopped.status == 1
    assert "mine.py:bias' raised ZeroDivisionError" in stopped.err
    assert "ZeroDivisionError" in (pairs / "run" / "error.log").read_text()
    done = hellora("run", "pairs.toml", "--out", "run", "--allow", "mine.py", "--resume")
    assert done.status == 0, done.err
