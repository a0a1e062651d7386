"""Whole runs that learn numbers, or several labels, of texts: a solved head, unequal clients, a stop, an export."""

import csv
import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from factories import bits
from federation_site import Silent, tensors

import hellora
from hellora.client.features import features_of
from hellora.core.errors import InputError
from hellora.core.types import Adapter
from hellora.experiments.config import check, read_experiment
from hellora.experiments.experiment import Experiment
from hellora.experiments.prepare import prepare
from hellora.runs.run import run_experiment
from hellora.server.heads import solved_first

WORTH = {"sea": 10.5, "sky": -20.0, "soil": 40.0}
TASKS: dict[str, dict[str, Any]] = {
    "regression": {"label": "worth"},
    "multi_label": {"label": "topics", "separator": ";"},
}
TAUGHT = {"aggregator": "mutual_distillation", "dispatcher": "prototype", "start": "none", "head": "aggregate"}
KINDS = pytest.mark.parametrize("kind", TASKS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of two sentences: the mean of what their topics are worth, and the topics, but for soil."""
    folder = tmp_path_factory.mktemp("worth")
    for name, count, seed in (("train", 60, 1), ("test", 30, 2)):
        first, second = tiny_models.sentences(count, seed), tiny_models.sentences(count, seed + 10)[::-1]
        rows = [
            (f"{a} {b}", (WORTH[one] + WORTH[two]) / 2, ";".join(sorted({one, two} - {"soil"})))
            for (a, one), (b, two) in zip(first, second, strict=True)
        ]
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "worth", "topics"), *rows])
    return folder


def experiment(kind: str, model: Path, source: Path, **changes: Any) -> Experiment:
    table: dict[str, Any] = {
        "rounds": 2,
        "cohort": 2,
        "task": {"name": kind},
        "model": {"name": str(model), "rank": 4},
        "data": {"name": str(source), "clients": 4, "alpha": 1.0, "min_examples": 4, **TASKS[kind]},
        "fleet": {"layers": [1, 2, 4]},
        "method": {"start": "ridge", "head": "closed_form", "allocator": "fed_hello", "warmup": 1},
        "train": {"lr": 0.01, "batch_size": 8, "steps": 2},
        "compute": {"threads": 1, "device": "cpu"},
    }
    for section, values in changes.items():
        table[section] = {**table.get(section, {}), **values} if isinstance(values, Mapping) else values
    return check("worth", table)


class Stopping(Silent):
    def round_finished(self, line: Any, *_: Any) -> None:
        if line["round"] == 0:
            raise KeyboardInterrupt


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def answers_of(card: Path) -> dict[str, Any]:
    """What a card's own code finds."""
    names: dict[str, Any] = {}
    exec(card.read_text().partition("```python\n")[2].partition("\n```")[0], names)
    return names


@KINDS
def test_a_run_is_stopped_exported_and_used(kind: str, tiny_bert: Path, data: Path, tmp_path: Path) -> None:
    """All that is made of it says the same: the run, its resumed twin, `evaluate`, `predict`, the card."""
    run = experiment(kind, tiny_bert, data)
    summary = run_experiment(run, tmp_path / "through", Silent())
    with pytest.raises(KeyboardInterrupt):
        run_experiment(run, tmp_path / "stopped", Stopping())
    run_experiment(run, tmp_path / "stopped", Silent(), resume=True)
    assert bits(tensors(tmp_path / "stopped")) == bits(tensors(tmp_path / "through"))
    main = "pearson" if kind == "regression" else "micro_f1"
    assert summary["final"][main] > max(0.3, summary["initial"][main])
    assert len(summary["groups"]) == 3

    out = hellora.export(tmp_path / "through", tmp_path / "out")
    metrics = hellora.evaluate(out, data / "test.csv")
    found = answers_of(out / "README.md")
    (tmp_path / "texts.csv").write_text("text\n" + "".join(f"{text}\n" for text in found["texts"]))
    said = hellora.predict(out, tmp_path / "texts.csv", out=tmp_path / "said.csv")
    rows = read(tmp_path / "said.csv")
    tested = read(data / "test.csv")
    again = hellora.predict(out, data / "test.csv")
    if kind == "regression":
        assert [each["value"] for each in found["answers"]] == pytest.approx([each["value"] for each in said], abs=1e-3)
        assert float(rows[0]["value"]) == said[0]["value"]
        squares = [(each["value"] - float(row["worth"])) ** 2 for each, row in zip(again, tested, strict=True)]
        assert metrics["rmse"] == pytest.approx((sum(squares) / len(squares)) ** 0.5, abs=1e-3)
        assert json.loads((out / "hellora.json").read_text())["task"]["numbers"] == ["value"]
    else:
        assert found["answers"] == [each["labels"] for each in said]
        assert json.loads(rows[0]["labels"]) == said[0]["labels"]
        assert float(rows[0]["probability.sea"]) == pytest.approx(said[0]["probabilities"]["sea"])
        right = [set(filter(None, row["topics"].split(";"))) for row in tested]
        both = [(set(each["labels"]), true) for each, true in zip(again, right, strict=True)]
        hits = sum(len(one & true) for one, true in both)
        assert metrics["micro_f1"] == pytest.approx(2 * hits / sum(len(one) + len(true) for one, true in both))


@KINDS
def test_a_head_is_that_of_all_rows_however_they_are_dealt_out(kind: str, tiny_bert: Path, data: Path) -> None:
    """Bit for bit; and a dense float64 solution's, but for the scale of logits."""
    heads = []
    for changes in ({"alpha": 0.5}, {"alpha": 5.0, "clients": 3}):
        setup = prepare(experiment(kind, tiny_bert, data, data=changes))
        with setup.backend() as backend:
            state, _ = solved_first(setup.federation, setup.initial_state(), backend)
        heads.append(dict(state.adapter.head))
    assert bits(heads[0]) == bits(heads[1])
    features = features_of(Adapter({}), setup.base, setup.experiment.task, setup.work.encoded).double()
    x = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    targets = setup.experiment.task.targets(setup.work.data)
    assert targets is not None
    y = targets.double() if kind == "regression" else 2 * targets.double() - 1
    gram = x.T @ x
    penalty = 1e-3 * gram.trace() / len(gram) * torch.eye(len(gram), dtype=torch.float64)
    expected = torch.linalg.solve(gram + penalty, x.T @ y).T
    mine = torch.cat([heads[0]["weight"], heads[0]["bias"][:, None]], dim=1).double()
    scale = 1.0 if kind == "regression" else float((mine * expected).sum() / expected.square().sum())
    assert scale in (1.0, *(pytest.approx(2.0**i, rel=1e-4) for i in range(7)))
    torch.testing.assert_close(mine, round(scale) * expected, rtol=0, atol=round(scale) * 1e-4)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("regression", {"method": {"start": "class_means"}}, "needs examples with a class each"),
        ("multi_label", {"method": {"start": "balanced_ridge"}}, "needs examples with a class each"),
        ("multi_label", {"method": {"ends_with": "better"}}, "method.ends_with = 'better' needs examples with a class"),
        ("multi_label", {"method": {"local_training": ["one_vs_all"]}}, "needs examples with a class each"),
        ("regression", {"method": {"logit_scale": 2.0}}, "method.logit_scale is of classes"),
        ("regression", {"data": {"separator": ","}}, "data.separator is of labels"),
        ("regression", {"method": TAUGHT, "data": {"public": "proxy"}}, "needs a model that says probabilities"),
    ],
)
def test_what_is_of_classes_is_refused_by_name(
    kind: str, changes: dict[str, Any], words: str, tiny_bert: Path, data: Path
) -> None:
    with pytest.raises(InputError, match=words):
        experiment(kind, tiny_bert, data, **changes)


def test_presets_with_a_solved_head_take_these_tasks_or_say_why_not(
    tiny_bert: Path, data: Path, tmp_path: Path
) -> None:
    model = {"model.name": str(tiny_bert), "model.rank": 4, "fleet.layers": [2, 4], "train.steps": 1}
    rows = {"data.name": str(data), "data.clients": 2, "data.min_examples": 2, "data.max_examples": 40}
    for preset, kind in product(("ridge_head", "ridge_lora"), TASKS):
        own = {f"data.{name}": value for name, value in TASKS[kind].items()}
        changes = {"rounds": 1, "cohort": 2, "task.name": kind, "compute.threads": 1, **model, **rows, **own}
        final = run_experiment(read_experiment(preset, changes), tmp_path / preset / kind, Silent())["final"]
        assert final["pearson" if kind == "regression" else "micro_f1"] > 0.3
    for kind in TASKS:
        with pytest.raises(InputError, match="needs examples with a class each: choose a task of classification"):
            read_experiment("hellora", {"task.name": kind})


def test_columns_of_several_targets_are_of_these_tasks(tiny_bert: Path) -> None:
    with pytest.raises(InputError, match=r"data\.labels are of regression and multi_label"):
        check("columns", {"model": {"name": str(tiny_bert)}, "data": {"labels": ["a", "b"]}})
