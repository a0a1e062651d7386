"""A run as an object: begun with objects, followed, left and gone on with, looked at as tables."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pandas as pd
import pytest
import tomli_w
from run_folders import line, summary_of, write_run
from transformers import AutoModel, AutoTokenizer

import hellora as package
from hellora.experiments.config import read_experiment
from hellora.interactive.given import given_experiment
from hellora.interactive.notebook import NotebookProgress
from hellora.interactive.run import Run

SETTINGS = {"rounds": 6, "cohort": 3, "model": {"rank": 4}, "compute": {"threads": 1}}
DATA = {"clients": 6, "alpha": 1.0, "min_examples": 4, "validation": 0.2}


@pytest.fixture(scope="module")
def frames(sentences: Path) -> dict[str, Any]:
    """The sentences as a DataFrame and as a data set."""
    return {
        "train": pd.read_csv(sentences / "train.csv"),
        "test": datasets.Dataset.from_pandas(pd.read_csv(sentences / "test.csv")),
    }


@pytest.fixture(scope="module")
def objects(tiny_bert: Path) -> dict[str, Any]:
    return {"model": AutoModel.from_pretrained(tiny_bert), "tokenizer": AutoTokenizer.from_pretrained(tiny_bert)}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment that names neither model nor data."""
    path = tmp_path_factory.mktemp("experiment") / "own.toml"
    table = {**SETTINGS, "fleet": {"layers": [1, 2, 4]}, "train": {"lr": 0.03, "batch_size": 8}}
    path.write_text(tomli_w.dumps(table))
    return path


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, file: Path, frames: dict[str, Any], objects: dict[str, Any]
) -> tuple[Run, list[dict[str, Any]]]:
    """A run of objects that ended early, and what was told of its rounds."""
    heard: list[dict[str, Any]] = []
    out = tmp_path_factory.mktemp("runs") / "own"
    run = package.run(
        file, {"stop": {"patience": 1}, "data": DATA}, data=frames, out=out, on_round=heard.append, **objects
    )
    return run, heard


def weights(run: Run) -> bytes:
    return (run.folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_objects_are_trained_as_files_are(
    finished: tuple[Run, list[dict[str, Any]]], file: Path, tiny_bert: Path, sentences: Path, tmp_path: Path
) -> None:
    run, _ = finished
    names = {"model.name": str(tiny_bert), "data.name": str(sentences), "stop.patience": 1, "data.validation": 0.2}
    experiment = read_experiment(str(file), names)
    same = package.run(experiment, data=DATA, out=tmp_path / "named")
    assert same["final"] == run["final"]
    assert same["stopped"] == run["stopped"]
    assert weights(same) == weights(run)
    table = (run.folder / "experiment.toml").read_text()
    assert re.search(r'^name = "object:[0-9a-f]{16}-[0-9a-f]{8}"$', table, re.MULTILINE)
    assert re.search(r'^name = "object:[0-9a-f]{16}"$', table, re.MULTILINE)
    assert "the given tables" in json.dumps(run["data"]["read"])
    assert "/tmp" not in json.dumps(dict(run)) + table


def test_a_run_answers_like_its_summary_and_has_tables(finished: tuple[Run, list[dict[str, Any]]]) -> None:
    run, heard = finished
    summary = json.loads((run.folder / "summary.json").read_text())
    assert {**run, "seal": summary["seal"]} == summary
    rounds = [json.loads(text) for text in (run.folder / "rounds.jsonl").read_text().splitlines()]
    assert heard == rounds
    history = run.history
    assert history["round"].tolist() == list(range(len(rounds)))
    assert len(rounds) < 6, "it ended early"
    assert history["accuracy"].tolist() == [each["metrics"]["accuracy"] for each in rounds]
    assert history["validation_accuracy"].tolist() == [each["validation"]["accuracy"] for each in rounds]
    assert history["uplink_bytes"].sum() == run["uplink_bytes"]
    clients = run.clients
    assert clients.index.tolist() == list(range(6))
    assert clients.groupby("group")["budget"].first().tolist() == ["1 layer", "2 layers", "4 layers"]
    assert clients["rounds"].sum() == sum(len(each["updated"]) for each in rounds)
    assert clients.loc[clients["rounds"] > 0, "rank"].eq(4).all()
    assert run.per_class is not None
    assert run.confusion is not None
    assert run.per_class.index.tolist() == run.confusion.index.tolist() == ["sea", "sky", "soil"]
    assert run.confusion.to_numpy().sum() == run.per_class["examples"].sum() == run["data"]["test"]
    assert repr(run).startswith(f"<hellora run {run.folder}: {len(rounds)} of 6 rounds, accuracy 0.")


def test_a_run_predicts_and_reports(
    finished: tuple[Run, list[dict[str, Any]]], sentences: Path, tmp_path: Path
) -> None:
    run, _ = finished
    texts = pd.read_csv(sentences / "test.csv").head(4)
    said = run.predict(texts)
    assert [each["row"] for each in said] == [0, 1, 2, 3]
    assert {each["label"] for each in said} <= {"sea", "sky", "soil"}
    assert run.predict(texts["text"].tolist()) == run.predict(texts.to_dict("records")) == said
    texts.to_csv(tmp_path / "texts.csv", index=False)
    assert run.predict(tmp_path / "texts.csv") == said
    with pytest.raises(package.InputError, match="rows must be a table, texts or a file's name, not 3"):
        run.predict(3)
    with pytest.raises(package.InputError, match=r"'one text' is no file: give texts as a list"):
        run.predict("one text")
    assert ">start</text>" in run._repr_html_()
    assert ">-1</text>" not in run._repr_html_()
    assert run.report(tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert (run.adapter / "adapter_config.json").is_file()
    loaded = package.load(run.folder)
    assert dict(loaded) == dict(run)
    with pytest.raises(
        package.InputError, match=r"object:.* is a loaded model that was given in Python: give the same"
    ):
        loaded.predict(texts)


def test_a_run_of_objects_goes_on_with_the_same_ones_alone(
    finished: tuple[Run, list[dict[str, Any]]],
    hellora: Callable[..., Any],
    file: Path,
    frames: dict[str, Any],
    objects: dict[str, Any],
    tmp_path: Path,
) -> None:
    """A run that is left, or whose listener fails, is whole; with other objects, or none, it is refused in a line."""
    run, _ = finished
    stop = {"patience": 1}
    out = tmp_path / "left"
    for round in package.rounds(file, stop=stop, data={**frames, **DATA}, out=out, **objects):
        assert round["round"] == 0
        break
    unfinished = package.load(out)
    assert (unfinished.summary, len(unfinished), len(unfinished.history)) == (None, 0, 1)
    with pytest.raises(KeyError, match="has not ended"):
        unfinished["final"]
    with pytest.raises(package.InputError, match=r"has not ended, and its adapter is written then"):
        _ = unfinished.adapter
    assert "not ended" in unfinished._repr_html_()

    other = {**frames, "train": frames["train"].head(50)}
    for tables, words in (
        ({"data": {**other, **DATA}}, "data: the run in .* was given an object, object:.*, and this is another one"),
        ({"data": DATA}, "data: the run in .* was given an object, object:.*, and this is a name, stdlib_docs"),
    ):
        with pytest.raises(package.InputError, match=words):
            package.run(file, stop=stop, out=out, resume=True, **tables, **objects)
    answer = hellora("run", out / "experiment.toml", "--out", out, "--resume")
    assert answer.status == 2
    assert "tables that were given in Python: give them again" in answer.err

    def fails(_: Any) -> None:
        raise LookupError("no such place")

    again: dict[str, Any] = {"stop": stop, "data": {**frames, **DATA}, "out": out, "resume": True}
    with pytest.raises(LookupError, match="no such place"):
        package.run(file, **again, on_round=[fails], **objects)
    assert len(package.load(out).history) == 2
    whole = package.run(out / "experiment.toml", **{key: again[key] for key in ("data", "out", "resume")}, **objects)
    assert weights(whole) == weights(run)
    assert whole["stopped"] == run["stopped"]


def test_objects_that_do_not_fit_are_refused(file: Path, objects: dict[str, Any], tmp_path: Path) -> None:
    mixed = pd.DataFrame({"text": ["a", 1], "label": ["x", "y"]})
    for given, words in (
        ({"data": mixed}, r"data\['train'\] cannot be read as a table"),
        ({"data": {"train": ["a text"]}}, r"data\.train must be a DataFrame, .*not \['a text'\]"),
        ({"model": objects["model"]}, "model and tokenizer belong together"),
        ({"model": 3, "tokenizer": objects["tokenizer"]}, "model must be a loaded model of transformers, .*not a int"),
        ({"rouns": 3}, "unknown setting rouns: did you mean 'rounds'"),
    ):
        with pytest.raises(package.InputError, match=words):
            package.run(file, out=tmp_path / "out", **given)
    with pytest.raises(package.InputError, match="on_round must be a function"):
        package.run("quickstart", out=tmp_path / "out", on_round=[3])
    assert not (tmp_path / "out").exists()


def test_settings_are_put_together_and_the_last_of_them_count(file: Path) -> None:
    layers = [{"train": {"lr": 0.5, "steps": 3}, "data.alpha": 2.0}, {"train": {"steps": 4}, "data": "my.csv"}]
    experiment, _ = given_experiment(file, layers, (), "my-bert", None)
    assert (experiment.train.lr, experiment.train.steps) == (0.5, 4)
    assert (experiment.model.name, experiment.data.name) == ("my-bert", "my.csv")
    changed, _ = given_experiment(experiment, [{"data": {"clients": 9}}], (), {"rank": 2}, None)
    assert (changed.data.name, changed.data.clients, changed.model.rank) == ("my.csv", 9, 2)
    same, _ = given_experiment(experiment, [{}], (), None, None)
    assert same.table == experiment.table


def test_a_run_without_classes_says_so_and_every_folder_is_read(tmp_path: Path) -> None:
    lines = [line(0, 0.3), line(1, 0.5, simulated_clock=None)]
    clients = [{"id": 0, "name": "clinic", "examples": 9, "budget": {"layers": 1, "memory_bytes": 2**30}}, {"id": 2}]
    run = package.load(write_run(tmp_path / "run", lines, clients, summary_of(lines)))
    for name in ("per_class", "confusion"):
        with pytest.warns(UserWarning, match=f"{name} of the run in .* is None: its task has no classes"):
            assert getattr(run, name) is None
    assert run.clients["budget"].tolist() == ["1 layer, 1.0 GiB", "all"]
    assert run.clients["layers"].tolist() == ["1", "0"]
    assert "simulated_seconds" not in run.history
    html = run._repr_html_()
    assert html.count("<svg") == 2
    assert "<script" not in html
    with pytest.raises(package.InputError, match="is no folder of a run"):
        package.load(tmp_path)


def test_a_notebook_shows_one_bar_and_a_table(tmp_path: Path) -> None:
    shown: list[str] = []
    progress = NotebookProgress(shown.append)
    experiment: Any = SimpleNamespace(name="<it>", model=SimpleNamespace(name="m"), data=SimpleNamespace(name="d"))
    setup: Any = SimpleNamespace(
        notes=("read 9 rows",), base=SimpleNamespace(notices=()), federation=SimpleNamespace(rounds=4)
    )
    with progress:
        progress.loading(experiment, tmp_path)
        progress.started(setup, {"accuracy": 0.1}, 0)
        progress.round_started(3)
        progress.client_answered(None)  # type: ignore[arg-type]
        assert "0 of 4 rounds (1 of 3 clients)" in shown[-1]
        progress.round_finished(line(0, 0.3))
    assert "&lt;it&gt;" in shown[0]
    assert '<progress value="1" max="4">' in shown[-1]
    assert "1 of 4 rounds, 0:00:00 left" in shown[-1]
    assert re.findall(r"<td>([\w.]+)</td>", shown[-1]) == ["before", "0.100", "0", "0.300"]
    assert "read 9 rows" in shown[-1]
