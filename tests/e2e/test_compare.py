"""`hellora compare`: a folder per cell, a table of all, and what happens when something goes wrong."""

import csv
import json
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from pages import blocks

from hellora.client.work import ClientWork
from hellora.comparing.figures import draw
from hellora.comparing.plan import Comparison, read_comparison
from hellora.core.exchange import ClientTask, ClientUpdate
from hellora.experiments.config import read_experiment

Command = Callable[..., Any]
PAGE = Path(__file__).parents[2] / "docs" / "compare.md"
METHODS = ("--method", "random_layers=method.allocator=random_layers", "--method", "still=method.head=frozen")
SETTINGS = ("--setting", "iid=data.partitioner=iid", "--setting", "skewed=data.alpha=0.3,data.min_examples=2")
FOUR = (*METHODS, *SETTINGS, "--set", "rounds=2")  # cells per seed
ONE_ROUND = ("--set", "rounds=1")
RESULTS = ("table.csv", "table.json", "table.md", "table.tex")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the tiny runs, so only the test of the figures has them."""
    monkeypatch.setattr("hellora.comparing.results.draw", lambda *_, **__: None)


def cells_in(out: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(out)) for path in out.glob("*/*/*/**/summary.json"))


def summary_of(out: Path, cell: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((out / cell / "summary.json").read_text())
    return summary


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open() as file:
        return list(csv.DictReader(file))


def results(out: Path) -> dict[str, Any]:
    """The table less what is measured of the machine."""
    rows = json.loads((out / "table.json").read_text())["rows"]
    for row in rows:
        for name in ("seconds", "peak_bytes"):
            row["values"].pop(name, None)
    return {"rows": rows}


def progress_of(answer: Any) -> list[str]:
    return [line for line in answer.out.splitlines() if re.match(r" *\d+/\d+  ", line)]


def test_every_cell_is_a_run_and_the_table_is_of_all(hellora: Command, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = hellora("compare", small, *FOUR, "--seeds", "0,5", "--out", out)
    assert (answer.status, answer.err) == (0, "")
    expected = [
        f"cells/{s}/{m}/seed-{seed}" for s in ("iid", "skewed") for m in ("random_layers", "still") for seed in (0, 5)
    ]
    assert cells_in(out) == expected
    assert answer.out.splitlines()[0] == f"2 settings × 2 methods × 2 seeds = 8 runs → {out}"
    assert len(progress_of(answer)) == 8
    assert "left" in progress_of(answer)[0]
    assert "round   0" not in answer.out
    assert "round   1" in (out / expected[0] / "run.log").read_text()
    begun = read_experiment(str(out / "cells/skewed/still/seed-5/experiment.toml"))
    changed = {"data.alpha": 0.3, "data.min_examples": 2, "method.head": "frozen", "seed": 5, "rounds": 2}
    assert begun.same_run(read_experiment(str(small), changed))
    rows = rows_of(out)
    assert [(row["setting"], row["method"], row["n"]) for row in rows] == [
        ("iid", "random_layers", "2"),
        ("iid", "still", "2"),
        ("skewed", "random_layers", "2"),
        ("skewed", "still", "2"),
    ]
    for row in rows:
        runs = [summary_of(out, f"cells/{row['setting']}/{row['method']}/seed-{seed}") for seed in (0, 5)]
        accuracies = [run["final"]["accuracy"] for run in runs]
        assert float(row["accuracy"]) == pytest.approx(np.mean(accuracies))
        half = 12.706204736 * abs(accuracies[0] - accuracies[1]) / 2  # t · s / √2, s = |difference| / √2
        assert float(row["accuracy ±"]) == pytest.approx(half)
        assert float(row["worst_client"]) == pytest.approx(np.mean([run["worst_client"] for run in runs]))
        assert float(row["uplink_bytes"]) == np.mean([run["uplink_bytes"] for run in runs])
        assert float(row["group 2 layers, rank 4"]) == pytest.approx(np.mean(accuracies))  # all receive all
        assert (row["kept"] == "") == (row["setting"] == "iid")
        assert f"{np.mean(accuracies):.3f} ± {half:.3f}" in answer.out
    assert "| random_layers |" in (out / "table.md").read_text()
    assert all((out / name).exists() for name in RESULTS)


def test_an_interrupted_comparison_goes_on_where_it_was(
    hellora: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second round of the third run; what was done is not done again, and the table is the same."""
    out, alone = tmp_path / "out", tmp_path / "alone"
    trained: list[int] = []
    train = ClientWork.train

    def counting(self: ClientWork, task: ClientTask) -> ClientUpdate:
        trained.append(task.round)
        if len(trained) == 2 * 6 + 4:
            raise KeyboardInterrupt
        return train(self, task)

    monkeypatch.setattr(ClientWork, "train", counting)
    stopped = hellora("compare", small, *FOUR, "--seeds", "0", "--out", out)
    assert stopped.status == 130
    again = stopped.out.splitlines()[-1].removeprefix("stopped; go on with: hellora ").split()
    assert again[-1] == "--resume"
    assert len(cells_in(out)) == 2
    assert "\n- not complete: 2 of 4 runs are in this table so far.\n" in (out / "table.md").read_text()
    assert [(row["setting"], row["method"]) for row in rows_of(out)] == [("iid", "random_layers"), ("iid", "still")]
    first = (out / "cells/iid/random_layers/seed-0/summary.json").stat().st_mtime_ns
    done = len(trained) - 1
    resumed = hellora(*again)
    assert resumed.status == 0, resumed.err
    assert sum("(done before)" in line for line in progress_of(resumed)) == 2
    assert len(trained) - done == 1 + 4 * 6 - done  # the interrupted client again, then those still to come
    assert (out / "cells/iid/random_layers/seed-0/summary.json").stat().st_mtime_ns == first
    assert hellora("compare", small, *FOUR, "--seeds", "0", "--out", alone).status == 0
    assert results(out) == results(alone)
    assert all("not complete" not in (out / name).read_text() for name in RESULTS)


def test_a_comparison_may_grow(hellora: Command, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert hellora("compare", small, *METHODS[:2], *ONE_ROUND, "--seeds", "0", "--out", out).status == 0
    grown = hellora("compare", small, *METHODS, *ONE_ROUND, "--seeds", "0,1", "--out", out, "--resume")
    assert grown.status == 0
    assert sum("(done before)" in line for line in progress_of(grown)) == 1
    assert [(row["method"], row["n"]) for row in rows_of(out)] == [("random_layers", "2"), ("still", "2")]


def test_a_comparison_that_grows_keeps_its_table_meanwhile(
    hellora: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method is put before one that has all its runs, and the first new run is interrupted."""
    out = tmp_path / "out"
    rest = (*ONE_ROUND, "--seeds", "0,1", "--out", out)
    assert hellora("compare", small, *METHODS[:2], *rest).status == 0

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ClientWork, "train", stop)
        grown = hellora("compare", small, *METHODS[2:], *METHODS[:2], *rest, "--resume")
    assert grown.status == 130
    assert ["random_layers" in line for line in progress_of(grown)] == [True, True]
    assert [(row["method"], row["n"]) for row in rows_of(out)] == [("random_layers", "2")]
    assert "not complete: 2 of 4 runs" in json.loads((out / "table.json").read_text())["notes"][0]


def test_what_may_change_in_a_run_may_change_in_a_comparison(hellora: Command, small: Path, tmp_path: Path) -> None:
    """Where it is computed and when a run gives up; what is done stays, and new runs have the new values."""
    out = tmp_path / "out"
    one = ("compare", small, *METHODS[:2], *ONE_ROUND, "--out", out)
    assert hellora(*one, "--seeds", "0").status == 0
    changed = ("--set", "min_clients=2", "--set", "attempts=5", "--set", "compute.eval_batch_size=7")
    resumed = hellora(*one, *changed, "--seeds", "0,1", "--resume")
    assert resumed.status == 0, resumed.err
    assert ["(done before)" in line for line in progress_of(resumed)] == [True, False]
    old, new = (read_experiment(str(out / f"cells/base/random_layers/seed-{seed}/experiment.toml")) for seed in (0, 1))
    assert [(e.run.min_clients, e.run.attempts, e.compute.eval_batch_size) for e in (old, new)] == [
        (1, 3, old.compute.eval_batch_size),
        (2, 5, 7),
    ]


def test_a_table_that_cannot_be_written_stops_the_comparison(
    hellora: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        if path.suffix == ".csv":
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr("hellora.comparing.results.write_atomically", full)
    answer = hellora("compare", small, *METHODS, *ONE_ROUND, "--out", tmp_path / "out")
    assert (answer.status, progress_of(answer)) == (1, [])
    assert answer.err == (
        f"error: cannot write the table to {tmp_path / 'out'}: No space left on device; --resume goes on from here\n"
    )


def failing(monkeypatch: pytest.MonkeyPatch, lr: float, error: Exception, inside: bool) -> None:
    """Training at this rate raises `error`: `inside` a client, which rejects it, or in the run itself."""
    owner, name = (ClientWork, "train" if inside else "attempt")
    works = getattr(owner, name)

    def train(work: ClientWork, task: ClientTask) -> Any:
        if task.train.lr == lr:
            raise error
        return works(work, task)

    monkeypatch.setattr(owner, name, train)


def test_a_cell_that_fails_is_reported_and_the_others_go_on(
    hellora: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One does not fit its fleet, one breaks in a way that nobody foresaw, one cannot train."""
    out = tmp_path / "out"
    lost = ("--method", "lost=method.allocator=exclusive,fleet.layers=[1, 2]")
    broken = ("--method", "broken=train.lr=0.25", "--method", "stuck=train.lr=0.125")
    rest = (*METHODS[:2], *ONE_ROUND, "--seeds", "0", "--out", out)
    with monkeypatch.context() as patch:
        failing(patch, 0.25, SystemError("a disk\nthat is full"), inside=False)
        failing(patch, 0.125, RuntimeError("out of memory"), inside=True)
        answer = hellora("compare", small, *lost, *broken, *rest)
    assert (answer.status, answer.err) == (1, "")
    lines = progress_of(answer)
    assert "needs a client that can train all 4 layers" in lines[0]
    assert "base  broken  seed 0  failed: SystemError: a disk that is full (see " in lines[1]
    assert "base  stuck  seed 0  failed: round 0 had 0 usable updates" in lines[2]
    assert "base  random_layers  seed 0  accuracy" in lines[3]
    assert "Traceback" in (out / "cells/base/broken/seed-0/run.log").read_text()
    assert "Traceback" not in answer.out
    table = json.loads((out / "table.json").read_text())
    assert [row["method"] for row in table["rows"]] == ["random_layers"]
    assert list(table["failed"]) == [f"cells/base/{name}/seed-0" for name in ("lost", "broken", "stuck")]
    assert "failed: base, broken, seed 0: SystemError: a disk that is full" in (out / "table.md").read_text()
    assert "3 of 4 runs failed" in answer.out
    mended = hellora("compare", small, *broken, *rest, "--resume")
    assert mended.status == 0
    assert [row["method"] for row in rows_of(out)] == ["broken", "stuck", "random_layers"]


def test_tuning_chooses_on_the_validation_split_and_for_each_method(
    hellora: Command, small: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    tune = ("--tune", "train.lr=1e-9,0.05", "--set", "train.epochs=3", *ONE_ROUND)
    answer = hellora("compare", small, *METHODS, *tune, "--seeds", "0,1", "--out", out)
    assert answer.status == 0, answer.out
    assert len(progress_of(answer)) == 4 + 4
    for row in rows_of(out):
        folder = f"tuning/base/{row['method']}"
        found = {lr: summary_of(out, f"{folder}/train.lr={lr}/seed-0") for lr in ("1e-09", "0.05")}
        assert all(run["data"]["evaluated_on"] == "the validation split" for run in found.values())
        assert all((run["data"]["train"], run["data"]["test"]) == (86, 10) for run in found.values())
        best = max(found, key=lambda lr: found[lr]["final"]["accuracy"])
        assert row["tuned"] == f"train.lr={best}"
        for seed in (0, 1):
            begun = read_experiment(str(out / f"cells/base/{row['method']}/seed-{seed}/experiment.toml"))
            assert (begun.train.lr, begun.data.evaluate_on) == (float(best), "test")
            run = summary_of(out, f"cells/base/{row['method']}/seed-{seed}")
            assert (run["data"]["train"], run["data"]["test"]) == (86, 54)
    assert not list((out / "tuning").glob("*/*/*/seed-1"))
    assert "tuned: the best on a validation split (0.1 of the training data" in answer.out
    assert "train.lr in [1e-09, 0.05]" in answer.out


def test_another_list_of_seeds_does_not_tune_again(hellora: Command, small: Path, tmp_path: Path) -> None:
    """The values stay those of the seed that it began with, unless [tune] asks for others, which is refused."""
    out, mine = tmp_path / "out", tmp_path / "mine.toml"
    one = ("compare", small, *METHODS[:2], *ONE_ROUND, "--tune", "train.lr=1e-9,0.05", "--out", out)
    assert hellora(*one, "--seeds", "0").status == 0
    other = hellora(*one, "--seeds", "1,0", "--resume")
    assert other.status == 0, other.err
    assert ["(done before)" in line for line in progress_of(other)] == [True, True, True, False]
    assert not list((out / "tuning").glob("*/*/*/seed-1"))
    record = tomllib.loads((out / "comparison.toml").read_text())
    assert (record["seeds"], record["tune"]["seeds"]) == ([1, 0], [0])
    assert "seeds [0]" in other.out
    mine.write_text(tomli_w.dumps({**record, "tune": {**record["tune"], "seeds": [1]}}))
    refused = hellora("compare", mine, "--out", out, "--resume")
    assert (refused.status, refused.out.count("\n")) == (2, 1)
    assert "has runs with values from another [tune]: choose another --out" in refused.err
    assert tomllib.loads((out / "comparison.toml").read_text()) == record


def test_a_value_that_a_run_fails_with_is_not_chosen(
    hellora: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 0.25, RuntimeError("out of memory"), inside=True)
    one = ("compare", small, *METHODS[:2], *ONE_ROUND, "--seeds", "0")
    answer = hellora(*one, "--tune", "train.lr=0.25,1e-9", "--out", tmp_path / "some")
    assert answer.status == 0
    assert [row["tuned"] for row in rows_of(tmp_path / "some")] == ["train.lr=1e-09"]
    assert "failed while tuning, and not chosen: base, random_layers, seed 0, train.lr=0.25: round 0 had" in answer.out
    nothing = hellora(*one, "--tune", "train.lr=0.25", "--out", tmp_path / "none")
    assert nothing.status == 1
    assert "no tuning run of this method ended" in nothing.out


def test_equal_uplink(hellora: Command, small: Path, tmp_path: Path) -> None:
    """A frozen head is not sent, so it takes less; the other method counts for as long as it fits into that."""
    out = tmp_path / "out"
    answer = hellora("compare", small, *METHODS, "--budget", "uplink", "--seeds", "0", "--out", out)
    assert answer.status == 0
    cut, whole = rows_of(out)
    folder = out / "cells/base/random_layers/seed-0"
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    budget = summary_of(out, "cells/base/still/seed-0")["uplink_bytes"]
    sent = np.cumsum([line["uplink_bytes"] for line in lines])
    rounds = int(sum(sent <= budget))
    assert 0 < rounds < 3
    assert (float(cut["rounds"]), float(whole["rounds"])) == (rounds, 3)
    assert float(cut["accuracy"]) == lines[rounds - 1]["metrics"]["accuracy"]
    assert float(cut["uplink_bytes"]) == sent[rounds - 1] <= budget == float(whole["uplink_bytes"])
    assert (cut["worst_client"], whole["worst_client"] != "") == ("", True)
    assert "equal uplink: a run counts up to its last evaluated round within its budget" in answer.out


def test_a_sweep_and_a_target(hellora: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value is a setting; the target may be another one later, for which nothing runs again."""
    monkeypatch.setattr("hellora.comparing.results.draw", draw)
    out = tmp_path / "out"
    one = ("compare", small, *METHODS[2:], "--sweep", "fleet.availability=1.0,0.8", *ONE_ROUND, "--out", out)
    answer = hellora(*one, "--seeds", "0", "--target", "0.05")
    assert (answer.status, answer.err) == (0, "")
    assert [(row["setting"], row["reached"]) for row in rows_of(out)] == [
        ("availability-1.0", "1"),
        ("availability-0.8", "1"),
    ]
    begun = read_experiment(str(out / "cells/availability-0.8/still/seed-0/experiment.toml"))
    assert begun.fleet.availability == (0.8, 0.8, 0.8)
    names = ["cost", "curves", "results", "sweep-fleet.availability"]
    files = [f"{name}.{kind}" for name in names for kind in ("pdf", "svg")]
    assert sorted(file.name for file in (out / "figures").iterdir()) == files
    assert r"method & availability-1.0 & availability-0.8 \\" in (out / "table.tex").read_text()
    again = hellora(*one, "--seeds", "0", "--target", "0.99", "--resume")
    assert all("(done before)" in line for line in progress_of(again))
    assert [(row["rounds_to_target"], row["reached"]) for row in rows_of(out)] == [("", "0"), ("", "0")]
    assert "≥ 1 (0 of 1)" in again.out


# -------------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["there is no method to compare: give --method"]),
        (["--method", "random_layers"], ["--method 'random_layers': write it as name=section.key=value"]),
        (
            ["--method", "a=method.allocator=fed_helo"],
            ["method a, setting base: method.allocator: there is no allocator", "did you mean 'fed_hello'"],
        ),
        (["--method", "a=", "--method", "b=train.lr=-1"], ["method b, setting base", "lr must be greater than 0"]),
        (["--method", "a=", "--setting", "s=data.alhpa=1"], ["method a, setting s: unknown setting data.alhpa"]),
        (["--method", "a=", "--seeds", "0,one"], ["seeds", "valid integer"]),
        (["--method", "a=", "--tune", "train.lr"], ["--tune 'train.lr': write it as"]),
        (["--method", "a=", "--target", "high"], ["target: Input should be a valid number, not 'high'"]),
        (["--method", "a=", "--sweep", "data.alpha"], ["--sweep 'data.alpha': write it as section.key=value,value"]),
        (["--method", "a=", "--budget", "money"], ["budget must be 'uplink' or a whole number of bytes, not 'money'"]),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    hellora: Command, small: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    answer = hellora("compare", small, *arguments, "--out", tmp_path / "out")
    assert (answer.status, answer.out) == (2, "")
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    for word in words:
        assert word in answer.err
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_something_else(hellora: Command, small: Path, tmp_path: Path) -> None:
    out, photos = tmp_path / "out", tmp_path / "photos"
    one = (*METHODS[:2], *ONE_ROUND, "--seeds", "0")
    assert hellora("compare", small, *one, "--out", out).status == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    photos.mkdir()
    (photos / "cat.png").touch()
    for arguments, word in (
        ((*one, "--out", out), "holds a comparison already: go on with --resume"),
        (
            (*one, "--set", "train.lr=0.5", "--out", out, "--resume"),
            "another experiment, with another train.lr: choose",
        ),
        ((*one, "--out", photos), "exists and is not a comparison of hellora"),
        ((*one, "--out", "/proc/no/such"), "cannot write to /proc/no/such"),
    ):
        answer = hellora("compare", small, *arguments)
        assert answer.status == 2, answer
        assert word in answer.err
        assert answer.err.count("\n") == 1
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


# ------------------------------------------------------------------------------------------------------------- the page


def code_of(language: str) -> str:
    return next(block.text for block in blocks(PAGE) if block.language == language)


def test_the_comparison_of_the_page_runs(hellora: Command, small: Path, tmp_path: Path) -> None:
    path, text = tmp_path / "methods.toml", code_of("toml")
    path.write_text(text)
    as_it_stands = read_comparison(str(path), {})
    assert len(as_it_stands.cells) == len(as_it_stands.methods) * len(as_it_stands.settings) * 3
    path.write_text(text.replace('"quickstart"', f'"{small}"'))
    out = tmp_path / "out"
    answer = hellora("compare", path, *ONE_ROUND, "--seeds", "0", "--tune", "train.lr=0.01", "--out", out)
    assert answer.status == 0, answer.out
    methods = list(tomllib.loads(text)["methods"])
    settings = list(tomllib.loads(text)["settings"])
    assert [(row["setting"], row["method"]) for row in rows_of(out)] == [(s, m) for s in settings for m in methods]
    assert all(row["tuned"].startswith("train.lr=") for row in rows_of(out))


def test_the_command_of_the_page_says_the_same(
    hellora: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[Comparison] = []

    def note(comparison: Comparison, *_: Any) -> None:
        compared.append(comparison)
        raise KeyboardInterrupt

    monkeypatch.setattr("hellora.comparing.run.run_comparison", note)
    monkeypatch.chdir(tmp_path)
    Path("methods.toml").write_text(code_of("toml"))
    assert hellora("compare", "methods.toml").status == 130
    command = code_of("console").removeprefix("$ hellora ").replace("\\\n", " ")
    assert hellora(*shlex.split(command)).status == 130
    assert compared[0] == compared[1]


def test_any_number_of_memories_goes_with_the_quickstart() -> None:
    memory = ["2GiB", "4GiB"]
    comparison = read_comparison("quickstart", {"methods": {"a": {}}, "seeds": [0], "memory": memory})
    experiment = comparison.of(comparison.cells[0], {})
    assert (list(experiment.fleet.memory), experiment.fleet.shares) == (memory, ())
