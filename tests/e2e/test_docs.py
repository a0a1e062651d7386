"""Pages of docs/ that show code: it runs as it stands."""

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "your-own-strategy.md"
NOT_OURS = ("tensorboard ",)  # commands on our pages that are other programs'


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the page's module in it."""
    code = PAGE.read_text().partition("```python\n")[2].partition("```")[0]
    (tmp_path / "my_strategies.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "my_strategies", raising=False)
    return tmp_path


def test_the_strategies_of_the_page_run(hellora: Callable[..., Any], small: Path, written: Path) -> None:
    commands = PAGE.read_text().partition("```console\n$ ")[2].partition("```")[0].strip().split("\n$ ")
    plan, run = (shlex.split(command)[3:] for command in commands)  # without `hellora run quickstart`
    assert hellora("plan", small, *plan).status == 0
    out = written / "out"
    answer = hellora("run", small, *run, "--set", "fleet.layers=[1, 2, 3]", "--out", out)
    assert answer.status == 0, answer.err
    lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    for line in lines:  # capacity 1, 2 or 3 of 4 layers, from layer `round` on, around the end
        for ranks in line["ranks"].values():
            window = (line["round"] + np.arange(np.count_nonzero(ranks))) % 4
            assert np.flatnonzero(ranks).tolist() == sorted(window.tolist())
    assert 'allocator = "my_strategies:RollingWindow"' in (out / "experiment.toml").read_text()
    assert "reach = 0.05" in (out / "experiment.toml").read_text()
    for line in lines:  # of 4 bytes each: query and value of every trained layer, (32 + 32) × rank 4; the head of 99
        layers = sum(map(np.count_nonzero, line["ranks"].values()))
        assert line["downlink_bytes"] == 4 * (layers * 2 * 64 * 4 + len(line["ranks"]) * 99)


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Path, sentences: Path) -> Path:
    """A working directory with the files that the pages speak of."""
    (tmp_path / "my.toml").write_bytes(small.read_bytes())
    texts = [line.partition(",")[0] for line in (sentences / "test.csv").read_text().splitlines()[1:6]]
    for name, heading in (("texts.csv", "text"), ("others.csv", "body")):
        (tmp_path / name).write_text("\n".join([heading, *texts]) + "\n")
    (tmp_path / "labelled.csv").write_bytes((sentences / "test.csv").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", ["use-the-adapter.md", "python.md", "trackers.md"])
def test_what_a_page_shows_runs_in_its_order(hellora: Callable[..., Any], user: Path, page: str) -> None:
    blocks = re.findall(r"^```(console|python)\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict[str, Any] = {"__name__": "__main__"}
    for language, text in blocks:
        if language == "python":
            exec(compile(text, page, "exec"), names)
            continue
        for command in text.replace("\\\n", " ").splitlines():
            if not command.removeprefix("$ ").startswith(NOT_OURS):
                words = shlex.split(command)
                assert words[:2] == ["$", "hellora"], command
                answer = hellora(*words[2:])
                assert (answer.status, answer.err) == (0, ""), command
    left = {path.name for path in [*user.iterdir(), *(user / "runs").iterdir()]}
    assert (
        left
        >= {
            "use-the-adapter.md": {"my-adapter", "my-model", "predictions.csv", "predictions.jsonl", "metrics.json"},
            "python.md": {"python", "from-python", "comparison"},
            "trackers.md": {"tracked"},
        }[page]
    )


def test_the_settings_of_a_page_are_those_of_an_experiment_file(user: Path) -> None:
    from tomllib import loads

    from hellora.config import read_experiment

    (block,) = re.findall(r"^```toml\n(.*?)^```", (DOCS / "trackers.md").read_text(), re.MULTILINE | re.DOTALL)
    (user / "tracked.toml").write_text(tomli_w.dumps({**loads((user / "my.toml").read_text()), **loads(block)}))
    experiment = read_experiment("tracked.toml")
    assert (experiment.tracking.trackers, experiment.tracking.project) == (("tensorboard",), "hellora")
