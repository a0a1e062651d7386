"""docs/methods/: a page for every method, the same sections on each, and settings and numbers as they are."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT

from hellora.core.exchange import TrainSettings
from hellora.experiments.config import own_table
from hellora.experiments.presets import presets
from hellora.experiments.registry import FOLDERS, find, names

FOLDER = ROOT / "docs" / "methods"
PAGES = sorted(page for page in FOLDER.glob("*.md") if page.stem != "index")
METHODS = [name for name in presets() if own_table(name).get("base") == "quickstart"]
SECTIONS = ["Idea", "Equation", "Settings", "When it fails", "Run it", "Figures"]
KINDS = ("start", "sampler", "allocator", "dispatcher", "local_training", "aggregator", "server_optimizer")
STRATEGIES = [(kind, name) for kind in KINDS for name in names(kind)]
SETTING = re.compile(r"^\| `(\w+)` \| (.+?) \|", re.MULTILINE)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def test_every_method_has_a_page_that_names_its_preset_and_runs_it() -> None:
    assert set(METHODS) <= {page.stem for page in PAGES}
    for name in METHODS:
        text = (FOLDER / f"{name}.md").read_text()
        assert re.search(rf"^\S.*preset\s+`{name}`$", text, re.MULTILINE | re.DOTALL)
        assert f"$ hellora run {name}\n" in text


@every_page
def test_a_page_has_the_sections_of_all(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    assert text.count("\n$$\n") >= 2
    assert f"](../figures/methods/{page.stem}.svg)" in text


def test_the_navigation_lists_every_page() -> None:
    listed = re.findall(r"methods/(\w+)\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(listed) == sorted(["index", *(page.stem for page in PAGES)])
    overview = (FOLDER / "index.md").read_text()
    assert all(f"]({page.stem}.md)" in overview for page in PAGES)


@pytest.mark.parametrize(("kind", "name"), STRATEGIES)
def test_a_page_explains_every_strategy_and_has_its_settings(kind: str, name: str) -> None:
    """The overview names it, a page links to its file, and lists each of its fields with the default."""
    folder = FOLDERS[kind][0].replace(".", "/")
    label = folder.rpartition("/")[2].replace("_", " ")
    (line,) = re.findall(rf"^\| {label} \|.*$", (FOLDER / "index.md").read_text(), re.MULTILINE)
    assert f"`{name}`" in line
    of_it = {(field.name, as_written(field.default)) for field in fields(find(kind, name))}
    texts = [page.read_text() for page in PAGES if f"(../../{folder}/{name}.py)" in page.read_text()]
    assert any(of_it <= set(SETTING.findall(text)) for text in texts), of_it


def as_written(default: Any) -> str:
    """A default as settings have it; none where nothing is set."""
    return "none" if default is None else f"`{json.dumps(default)}`"


@every_page
def test_a_page_names_no_setting_that_its_strategies_lack(page: Path) -> None:
    text = page.read_text()
    linked = re.findall(r"\(\.\./\.\./(hellora/methods/\w+)/(\w+)\.py\)", text)
    kinds = {folder.replace(".", "/"): kind for kind, (folder, _) in FOLDERS.items()}
    known = {field.name for folder, name in linked for field in fields(find(kinds[folder], name))}
    known |= {field.name for field in fields(TrainSettings)}
    section = text.partition("\n## Settings\n")[2].partition("\n## ")[0]
    assert {name for name, _ in SETTING.findall(section)} <= known


def results(folder: str, setting: str) -> dict[str, str]:
    """Of a committed comparison: each method's accuracy as a page writes it."""
    rows = json.loads((ROOT / "benchmarks" / "results" / folder / "table.json").read_text())["rows"]
    means = {row["method"]: row["values"]["accuracy"] for row in rows if row["setting"] == setting}
    return {name: f"{value['mean']:.3f} ± {value['half']:.3f}" for name, value in means.items()}


def test_a_page_has_the_number_of_the_table() -> None:
    measured = {**results("trec_more", "dirichlet"), **results("trec", "dirichlet")}
    assert set(measured) <= set(METHODS)
    for name, number in measured.items():
        assert f"**{number}**" in (FOLDER / f"{name}.md").read_text(), name
    with_memory = results("trec_memory", "base")
    for page, method in (("baselines", "exclusive"), ("baselines", "straggler"), ("budget_value", "planner")):
        assert f"**{with_memory[method]}**" in (FOLDER / f"{page}.md").read_text()


@every_page
def test_every_number_with_an_interval_is_in_a_table(page: Path) -> None:
    tables = [results("trec", "dirichlet"), results("trec_more", "dirichlet"), results("trec_memory", "base")]
    known = {number for table in tables for number in table.values()}
    assert set(re.findall(r"\d\.\d+ ± \d\.\d+", page.read_text())) <= known
