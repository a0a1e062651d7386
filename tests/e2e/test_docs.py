"""The pages of the documentation: every block of code on them runs as it stands, in the order of its page.

The presets are at hand as small copies: the quickstart with a tiny model and a few sentences, all others on top of it.
"""

import importlib
import inspect
import itertools
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import tiny_models
import tomli_w
import typer
from pages import PAGES, ROOT, Block, Command, blocks, commands
from PIL import Image
from run_folders import ended_run

from hellora.cli.app import app
from hellora.cli.help import BELOW, EXAMPLES
from hellora.comparing.plan import read_comparison
from hellora.experiments.config import read_experiment
from hellora.experiments.model_choice import Candidate
from hellora.experiments.overrides import parse_settings
from hellora.experiments.presets import presets
from hellora.experiments.registry import find
from hellora.experiments.sections import override
from hellora.experiments.tables import settings_of

PRESETS = ROOT / "hellora" / "experiments" / "presets"
LANGUAGES = {"console", "python", "toml", "text", "csv", "json"}
# Commands that are understood and checked, but not run here, and why.
ELSEWHERE = {
    r"hellora (server|client|certificates) |--federation": "test_deployed_runs.py runs them between processes",
    r"--backend flower": "test_simulated_runs.py runs it",
    r"hellora watch ": "serves until Ctrl-C: test_report.py",
    r"--install-completion": "would write into the shell's own files",
    r"org/|meta-llama/|google/": "needs the hub",
    r"(run|plan) (vit_cifar100|vit_domainnet|bert_ledgar|distilbert_imdb|llama_\w+)": "needs the hub",
    r"(run|plan) (smollm2_\w+|qwen_chat)": "needs the hub",
    r"run llm_quickstart": "takes minutes",
    r"hellora run topics.toml$": "takes minutes: test_init.py runs what is written for data of each task",
    r"hellora push ": "needs the hub: test_push.py",
    r"compare cifar100.toml": "needs the hub",
    r"compare robust.toml": "36 runs: test_compare.py runs a smaller one",
}
# Other programs; their commands are not run.
OTHERS = (
    "cd", "cp", "curl", "docker", "git", "pip", "python3", "ray", "source", "ssh", "ssh-keygen", "sudo", "systemctl",
    "tar", "tensorboard", "unzip", "vllm", "llama-cli",
)  # fmt: skip


@pytest.fixture(scope="module")
def small_presets(tmp_path_factory: pytest.TempPathFactory, sentences: Path) -> Path:
    """A folder with all presets, in which the quickstart is a matter of seconds."""
    folder = tmp_path_factory.mktemp("presets")
    model = tiny_models.save_bert(folder / "bert", num_hidden_layers=6)
    for name in presets():
        (folder / f"{name}.toml").write_text((PRESETS / f"{name}.toml").read_text())
    data = shutil.copytree(sentences, folder / "sentences")
    heading, *rows = (data / "test.csv").read_text().splitlines(keepends=True)
    for split, part in (("test", rows[:40]), ("proxy", rows[40:])):  # the quickstart's data have such a split, too
        (data / f"{split}.csv").write_text("".join([heading, *part]))
    table = tomllib.loads((folder / "quickstart.toml").read_text())
    table["model"]["name"], table["data"]["name"] = str(model), str(data)
    table["data"] |= {"clients": 6, "min_examples": 4}
    table |= {"rounds": 4, "cohort": 3}
    table["train"] |= {"steps": 1, "batch_size": 4}
    del table["train"]["epochs"]
    table["compute"] = {"threads": 1}
    (folder / "quickstart.toml").write_text("# small\n" + tomli_w.dumps(table))
    return folder


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Path, small_presets: Path, sentences: Path) -> Path:
    """A working directory with the files that the pages speak of."""
    monkeypatch.setattr("hellora.experiments.config.files", lambda _: small_presets)
    tiny = Candidate(str(small_presets / "bert"), "encoder", 1e5, 1e-3)  # what `hellora init` chooses
    monkeypatch.setattr("hellora.experiments.model_choice.CANDIDATES", (tiny,))
    texts = [row.partition(",")[0] for row in (sentences / "test.csv").read_text().splitlines()[1:6]]
    (tmp_path / "my.toml").write_bytes(small.read_bytes())
    for name, heading in (("texts.csv", "text"), ("others.csv", "body")):
        (tmp_path / name).write_text("\n".join([heading, *texts]) + "\n")
    (tmp_path / "labelled.csv").write_bytes((sentences / "test.csv").read_bytes())
    own_data_and_models(tmp_path, sentences)
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b", "c")):
        ended_run(tmp_path / "runs" / name, seed=seed)
    methods = {name: {"method.allocator": name} for name in ("fed_hello", "random_layers")}
    (tmp_path / "methods.toml").write_text(tomli_w.dumps({"base": "quickstart", "seeds": [0], "methods": methods}))
    return tmp_path


def own_data_and_models(folder: Path, sentences: Path) -> None:
    """What the first pages call the reader's own."""
    rows = [line.split(",") for line in (sentences / "train.csv").read_text().splitlines()[1:]]
    (folder / "my.csv").write_text("\n".join(["message,topic", *map(",".join, rows)]) + "\n")
    asked = [{"question": text, "answer": topic} for text, topic in rows]
    (folder / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    tiny_models.save_bert(folder / "my-bert")
    tiny_models.save_vit(folder / "my-vit")
    tiny_models.save_llama(folder / "my-llama")
    for split, label, shade in itertools.product(("train", "test"), ("dark", "light"), range(6)):
        file = folder / "my-images" / split / label / f"{shade}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * shade + 100 * (label == "light"),) * 3).save(file)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_runs_in_its_order(hellora: Callable[..., Any], user: Path, page: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        assert block.language in LANGUAGES
        if block.title is not None:
            write(user / block.title, block)
        elif block.language == "toml":
            check_settings(block.text)
        elif block.language == "python":
            exec(compile(block.text, page.name, "exec"), names)
        elif block.language == "console":
            for command in commands(block):
                follow(hellora, command)


def test_the_notebook_runs_from_its_first_cell_to_its_last(user: Path) -> None:
    """With the small quickstart, fewer rows, and fewer steps than its settings have."""
    cells = json.loads((ROOT / "examples" / "own_data.ipynb").read_text())["cells"]
    assert len(cells) <= 15
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
            names["frame"] = names["frame"].head(480)
            names.get("settings", {}).update(rounds=3, train={"steps": 1, "batch_size": 4})
    assert len(names["frame"]) == 480
    assert names["run"].history["round"].tolist() == [0, 1, 2]
    assert "accuracy" in (user / "own_data.html").read_text()


def test_the_examples_of_all_help_run(
    hellora: Callable[..., Any], user: Path, small_presets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorter = shutil.copytree(small_presets, user / "presets")
    (shorter / "quickstart.toml").write_text(
        (shorter / "quickstart.toml").read_text().replace("rounds = 4", "rounds = 1")
    )
    monkeypatch.setattr("hellora.experiments.config.files", lambda _: shorter)
    rows = (user / "labelled.csv").read_text().partition("\n")[2]
    (user / "test.csv").write_text(f"body,topic\n{rows}")
    (first,) = re.findall(r"Example:\n +(hellora .*)\n", hellora("--help").out)
    below = [line for examples in BELOW.values() for line in examples.values()]
    for line in (first, *EXAMPLES.values(), *below):
        follow(hellora, Command(tuple(shlex.split(line)), ""))


def write(file: Path, block: Block) -> None:
    """A block with a title is a file of the reader's; settings in it are checked at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(block.text)


def check_settings(text: str) -> None:
    """A block of settings is part of an experiment file, or the whole of one."""
    own, table = tomllib.loads(Path("my.toml").read_text()), tomllib.loads(text)
    if "methods" in table:  # what `hellora compare` reads
        Path("shown.toml").write_text(text)
        read_comparison("shown.toml", {})
        return
    own["data"]["clients"], own["fleet"] = 20, {}
    whole = table if {"model", "data"} <= table.keys() else override(own, settings_of(table))
    Path("shown.toml").write_text(tomli_w.dumps(whole))
    read_experiment("shown.toml", {})


def follow(hellora: Callable[..., Any], command: Command) -> None:
    program, *words = command.words
    program = Path(program).name
    if program == "make":
        words = words[2:] if words[0] == "-C" else words
        targets = [word for word in words if "=" not in word]
        assert all(re.search(rf"^{word}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for word in targets), command
    elif program == "python":
        assert (ROOT / words[0]).is_file(), command
    elif program == "hellora":
        reason = next((why for pattern, why in ELSEWHERE.items() if re.search(pattern, str(command))), None)
        if reason is not None or command.machine:
            check_words(words)
        else:
            answer = hellora(*words)
            assert (answer.status, answer.err) == (0, ""), (str(command), answer.err)
    else:
        assert program in OTHERS, command


def check_words(words: list[str]) -> None:
    """Each option is one of the command's, and of a preset the settings are right."""
    group = typer.main.get_command(app)
    with click.Context(group) as above:
        if words[0].startswith("--"):
            assert any(words[0] in option.opts for option in group.get_params(above))
            return
        name, command, rest = group.resolve_command(above, list(words))
        with command.make_context(name, rest, parent=above) as context:
            source = context.params.get("source")
            if source in presets():
                read_experiment(source, parse_settings(context.params["overrides"] or ()))
            elif name == "compare":
                read_comparison(source, {})


def test_the_strategies_of_the_page_do_what_they_say(hellora: Callable[..., Any], user: Path) -> None:
    for block in blocks(ROOT / "docs" / "your-own-strategy.md"):
        if block.title is not None:
            write(user / block.title, block)
    small = ("--set", "model.rank=4", "--set", "fleet.layers=[1,2,3]", "--out", "out")
    assert hellora("run", "rolling.toml", *small, "--allow", "my_strategies.py").status == 0
    table = tomllib.loads((user / "out" / "experiment.toml").read_text())
    assert table["method"]["allocator"] == f"{user}/my_strategies.py:RollingWindow"
    assert table["method"]["power"] == 0.5
    for row in map(json.loads, (user / "out" / "rounds.jsonl").read_text().splitlines()):
        for ranks in row["ranks"].values():  # capacity 1, 2 or 3 of 6 layers, from layer 2 · round on, around the end
            window = (2 * row["round"] + np.arange(np.count_nonzero(ranks))) % 6
            assert np.flatnonzero(ranks).tolist() == sorted(window.tolist())
        # of 4 bytes each: query and value of every trained layer, (32 + 32) × rank 4; the head of 99
        layers = sum(map(np.count_nonzero, row["ranks"].values()))
        grids = 2 * (8 + 33 * 8) + 8 * 99  # the grid in two of three passes, the head in the last
        down = 4 * (layers * 2 * 64 * 4 + len(row["ranks"]) * 99)
        assert row["downlink_bytes"] == down + grids * len({k for wave in row["sums"] for k in wave["updated"]})


@pytest.mark.parametrize(
    ("kind", "name"), [("allocator", "RollingWindow"), ("aggregator", "PowerMean"), ("dispatcher", "OnlyTrained")]
)
def test_the_strategies_of_the_page_keep_the_laws(kind: str, name: str, user: Path) -> None:
    (user / "my_strategies.py").write_text(blocks(ROOT / "docs" / "your-own-strategy.md")[0].text)
    strategy = find(kind, f"my_strategies.py:{name}")()
    values = {kind: strategy, "seed": 3, "examples": 7}
    laws = vars(importlib.import_module(f"laws.test_{kind}_laws"))
    kept = 0
    for law in [value for key, value in laws.items() if key.startswith("test_")]:
        binding = getattr(law, "fact", None) in (None, *strategy.demands.promises)
        if binding and kind in (wanted := inspect.signature(law).parameters):
            law(**{parameter: values[parameter] for parameter in wanted})
            kept += 1
    assert kept >= 3
