"""The functions of the package: the names of the commands, and what they return."""

import importlib.util
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_folders import line, write_run

import hellora as package

COMMANDS = ("run", "plan", "compare", "report", "export", "predict", "evaluate")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_function_is_named_like_its_command_and_like_no_module(name: str) -> None:
    """A module of the same name would take the function's place as soon as somebody imports it."""
    assert name in package.__all__
    assert importlib.util.find_spec(f"hellora.{name}") is None
    function = getattr(package, name)
    assert inspect.getdoc(function)
    assert "InputError" in inspect.getdoc(function)
    parameters = inspect.signature(function)
    assert all(p.annotation is not inspect.Parameter.empty for p in parameters.parameters.values())
    assert parameters.return_annotation is not inspect.Signature.empty


def test_plan_is_what_the_run_then_does(small: Path, tmp_path: Path) -> None:
    settings = {"method.allocator": "geometric"}
    package.run(str(small), settings, out=tmp_path / "out")
    rounds = [json.loads(text) for text in (tmp_path / "out" / "rounds.jsonl").read_text().splitlines()]
    for done in rounds:
        planned = package.plan(str(small), settings, round=done["round"])
        assert {str(client): ranks for client, ranks in planned.items()} == done["ranks"]
    with pytest.raises(package.InputError, match="--round 3: the rounds are 0 to 2"):
        package.plan(str(small), round=3)


def test_a_report_is_a_file_beside_the_run_or_where_it_is_wanted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "out", [line(0), line(1)])
    page = package.report(run)
    assert page == run / "report.html"
    assert "<title>out" in page.read_text()
    assert package.report(str(run), out=tmp_path / "pages" / "it.html").is_file()
    with pytest.raises(package.InputError, match="no run was named"):
        package.report()


def test_compare_is_the_command(hellora: Callable[..., Any], small: Path, tmp_path: Path) -> None:
    result = package.compare(
        str(small),
        {"rounds": 1},
        methods={"geometric": {"method.allocator": "geometric"}, "random": {"method.allocator": "random_layers"}},
        settings={"even": {"data.alpha": 10.0}},
        seeds=[1],
        out=tmp_path / "python",
    )
    words = (
        "--set rounds=1 --method geometric=method.allocator=geometric --method random=method.allocator=random_layers"
    )
    answer = hellora(
        "compare", small, *words.split(), "--setting", "even=data.alpha=10.0", "--seeds", 1, "--out", tmp_path / "cli"
    )
    assert answer.status == 0, answer.err
    assert [(row.setting, row.method, row.seeds) for row in result.rows] == [
        ("even", "geometric", (1,)),
        ("even", "random", (1,)),
    ]
    assert not result.failed
    table = json.loads((tmp_path / "cli" / "table.json").read_text())
    accuracies = [row["values"]["accuracy"]["mean"] for row in table["rows"]]
    assert [row.values["accuracy"].mean for row in result.rows] == accuracies
    assert result.table["accuracy"].tolist() == accuracies
    assert result.table.columns[:3].tolist() == ["setting", "method", "n"]
    assert callable(package.compare), "no module has taken its place"


def test_results_are_written_where_asked(small: Path, tmp_path: Path) -> None:
    out, texts = tmp_path / "out", tmp_path / "texts.csv"
    texts.write_text("text,label\nwe saw the boat,sea\n")
    package.run(str(small), {"rounds": 1}, out=out)
    adapter = package.export(out)
    assert adapter == out / "export"
    said = package.predict(str(adapter), texts, out=tmp_path / "said.jsonl")
    assert [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()] == said
    metrics = package.evaluate(adapter, str(texts), out=str(tmp_path / "metrics.json"))
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert metrics["accuracy"] == float(said[0]["label"] == "sea")
