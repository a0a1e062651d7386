"""`hellora report` and `hellora watch` in a headless Chromium, on a real run and a real comparison."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import tomli_w
from browsing import Watching
from playwright.sync_api import Page, expect
from rich.console import Console
from run_folders import line, summary_of, write_run

import hellora as library
from hellora.comparing.plan import read_comparison
from hellora.comparing.run import run_comparison
from hellora.core.per_class import PerClass
from hellora.reporting.overview import page_of
from hellora.reporting.page import content_of, html
from hellora.reporting.watch import server_of

pytestmark = pytest.mark.browser
ALL = [
    "accuracy",
    "loss",
    "classes",
    "served",
    "allocation",
    "scores",
    "spectrum",
    "memory",
    "traffic",
    "labels",
    "drift",
    "failures",
]
# What plotly has drawn of each plot: points, bars, lines, images of heat maps.
DRAWN = """plot => plot.querySelectorAll(
    '.scatterlayer .trace path, .scatterlayer .trace .point, .barlayer .point, .heatmaplayer image'
).length"""
COLOURS = """plot => plot.data.map(trace => [trace.name, [
    trace.marker?.color, trace.line?.color, trace.fillcolor, trace.error_x?.color, trace.error_y?.color
]])"""
# Texts of a plot that its edge cuts off.
CUT_OFF = """plot => {
    const edge = plot.getBoundingClientRect(), kinds = ".xtick text, .ytick text, .xtitle, .ytitle, .legendtext";
    const texts = [...plot.querySelectorAll(kinds)].map(text => [text.textContent, text.getBoundingClientRect()]);
    return texts.filter(([, a]) => a.left < edge.left - 1 || a.right > edge.right + 1).map(([name]) => name);
}"""
ALPHAS = ("alpha-1.0", "alpha-0.5")
# Which texts of a plot lie on each other. Of labels at an angle the boxes overlap where the letters do not.
OVERLAPS = """plot => {
    const texts = [...plot.querySelectorAll(
        '.xtick text, .ytick text, .g-xtitle text, .g-ytitle text, .legendtext, .cbaxis text, .cbtitle text'
    )].filter((text) => text.textContent);
    const slanted = (text) => /rotate\\((?!0|-?90,)/.test(text.getAttribute("transform") ?? "");
    const boxes = texts.map((text) => text.getBoundingClientRect());
    const found = [];
    for (let i = 0; i < texts.length; i++) for (let j = 0; j < i; j++) {
        const [a, b] = [boxes[i], boxes[j]];
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        const both = slanted(texts[i]) && slanted(texts[j]);
        if (wide > 1 && high > 3 && !both) found.push([texts[i].textContent, texts[j].textContent, wide, high]);
    }
    return found;
}"""
FOCUS = """() => {
    const at = document.activeElement, style = getComputedStyle(at);
    const name = at.id || at.name || at.textContent.trim().slice(0, 40);
    return {name, tag: at.tagName, ring: style.outlineStyle !== "none" || at === document.body};
}"""


@contextmanager
def serving(folder: Path) -> Iterator[ThreadingHTTPServer]:
    """The page of a run, served as `hellora watch` does."""
    with server_of(folder) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def table(tiny_bert: Path, sentences: Path) -> dict[str, Any]:
    """Fisher scores, budgets in bytes, simulated devices, and clients that are missing or too late."""
    return {
        "rounds": 4,
        "cohort": 3,
        "over_select": 1.4,
        "deadline": 30.0,
        "model": {"name": str(tiny_bert), "rank": 4},
        "data": {"name": str(sentences), "clients": 6, "alpha": 1.0, "min_examples": 4},
        "fleet": {
            "layers": [1, 2, 4],
            "memory": ["600KB", "700KB", "1MB"],
            "speed": [1e8, 1e8, 1e7],
            "link": ["1MB/s", "40KB", "5KB"],
            "availability": [0.6, 0.8, 1.0],
        },
        "method": {"allocator": "fed_hello", "warmup": 1, "refresh": 2},
        "train": {"lr": 0.03, "batch_size": 8},
        "compute": {"threads": 1},
    }


@pytest.fixture(scope="module")
def run(table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "small.toml").write_text(tomli_w.dumps(table))
    library.run(str(folder / "small.toml"), out=folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def comparison(table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "small.toml").write_text(tomli_w.dumps({**table, "rounds": 1}))
    methods = {"random_layers": {"method.allocator": "random_layers"}, "fed_hello": {}}
    changes = {"methods": methods, "seeds": [0, 1], "sweep": {"data.alpha": [1.0, 0.5]}, "target": 0.4}
    run_comparison(read_comparison(str(folder / "small.toml"), changes), folder / "cmp", Console(quiet=True))
    return folder / "cmp"


@pytest.fixture(scope="module")
def report(run: Path) -> str:
    file = run.parent / "report.html"
    file.write_text(html(content_of(page_of([run]))))
    return file.as_uri()


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def check_drawn(page: Page, ids: list[str]) -> None:
    """Every plot is drawn in each of its views, and has its numbers."""
    assert page.locator("main > section").evaluate_all("all => all.map(each => each.id)") == ids
    for id in ids:
        section = page.locator(f"[id='{id}']")
        radios = section.get_by_role("radio")
        views = max(1, radios.count())
        seen = set()
        for view in range(views):
            if views > 1:
                radios.nth(view).check()
            plot = section.locator(".plot")
            assert plot.evaluate(DRAWN) > 0, (id, view)
            assert plot.evaluate(OVERLAPS) == [], (id, view)
            seen.add(json.dumps(plot.evaluate("plot => [plot.layout.xaxis.title.text, plot.data]"), default=str))
        assert len(seen) == views, f"{id}: two views show the same"
        if section.locator("details[open]").count() == 0:
            section.locator("summary").click()
        expect(section.locator("tbody tr")).not_to_have_count(0)
        assert section.locator("thead th").count() == section.locator("tbody tr").first.locator("td").count()


def check_story(page: Page, metrics: dict[str, float], width: int) -> None:
    """What was learned, by whom and at what cost is on the first screen, and where it is wide, so is the first plot."""
    story = page.locator("#story section")
    assert story.locator("h2").all_inner_texts() == ["What was learned", "By whom", "At what cost"]
    assert f"→ {metrics['accuracy']:.3f}" in story.nth(0).inner_text()
    assert "After round 3, the last." in story.nth(0).inner_text()
    assert "6 clients, 3 in a round" in story.nth(1).inner_text()
    assert "Budgets: 2 with 1 of 4 layers, 585.9 KiB of memory; 2 with 2 of 4" in story.nth(1).inner_text()
    page.evaluate("scrollTo(0, 0)")
    last, plot = story.nth(2).bounding_box(), page.locator(".plot").first.bounding_box()
    assert last is not None
    assert plot is not None
    assert last["y"] + last["height"] < 900
    assert plot["y"] + plot["height"] / 2 < 900 or width < 1000


def check_rows(page: Page) -> None:
    """No row of sections ends before the page does, and no plot is wider or much narrower than its section."""
    rows: dict[float, float] = {}
    for section in page.locator("main > section").all():
        box, plot = section.bounding_box(), section.locator("svg.main-svg").first.bounding_box()
        assert box is not None
        assert plot is not None
        rows[box["y"]] = max(rows.get(box["y"], 0), box["x"] + box["width"])
        assert box["width"] - 60 < plot["width"] <= box["width"]
    assert len(set(rows.values())) == 1, rows


def ranks_shown(page: Page) -> list[list[int | None]]:
    found: list[list[int | None]] = page.locator("#allocation .plot").evaluate("plot => plot.data[0].z")
    return found


def ranks_of(line: dict[str, Any], clients: int) -> list[list[int | None]]:
    behind = line["missing"].keys() | line["rejected"].keys()
    rows = {client: row for client, row in line["ranks"].items() if client not in behind}
    return [rows.get(str(client), [None] * 4) for client in range(clients)]


# ------------------------------------------------------------------------------------------------------- one run


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_plot_is_drawn(opened: Callable[..., Watching], report: str, run: Path, width: int, scheme: str) -> None:
    page = opened(report, width, color_scheme=scheme).page
    check_drawn(page, ALL)
    assert page.locator("#left-out").is_hidden()
    check_story(page, lines_of(run)[-1]["metrics"], width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for plot in page.locator(".plot").all():
        box = plot.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert plot.locator("svg.main-svg").first.evaluate("svg => svg.clientWidth") <= box["width"] + 1


def test_the_slider_moves_the_heat_map(opened: Callable[..., Watching], report: str, run: Path) -> None:
    page, lines = opened(report).page, lines_of(run)
    slider = page.get_by_role("slider", name="Round")
    assert ranks_shown(page) == ranks_of(lines[-1], 6)
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert ranks_shown(page) == ranks_of(lines[-2], 6)
    page.keyboard.press("Home")
    assert ranks_shown(page) == ranks_of(lines[0], 6)
    assert slider.get_attribute("aria-valuetext") == "0 (of 0 to 3)"
    page.locator("#allocation summary").click()
    expect(page.locator("#allocation tbody tr")).to_have_count(6)
    shown = page.locator("#allocation tbody tr").all_inner_texts()
    expected = [["–" if rank is None else str(rank) for rank in row] for row in ranks_of(lines[0], 6)]
    assert [row.split("\t") for row in shown] == [[f"client {i}", *row] for i, row in enumerate(expected)]


def test_a_plot_that_was_drawn_again_keeps_its_height(opened: Callable[..., Watching], report: str) -> None:
    page = opened(report).page
    plots, heights = page.locator(".plot"), "all => all.map(plot => plot.getBoundingClientRect().height)"
    before = plots.evaluate_all(heights)
    page.get_by_role("radio", name="bytes", exact=True).first.check()
    page.get_by_role("slider", name="Round").press("Home")
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 900, "height": 700})
    page.evaluate("Promise.all([...document.querySelectorAll('.plot')].map(plot => Plotly.Plots.resize(plot)))")
    assert min(before) > 150
    assert plots.evaluate_all(heights) == before


def test_the_keyboard_reaches_everything_in_the_order_of_the_page(opened: Callable[..., Watching], report: str) -> None:
    page = opened(report).page
    reached = []
    for _ in range(80):
        page.keyboard.press("Tab")
        at = page.evaluate(FOCUS)
        if at["tag"] == "BODY":
            break
        assert at["ring"], at
        reached.append(at["name"])
    expected = ["Skip to the plots", *page.locator("main h2").all_inner_texts()]
    for id in ALL:
        views = page.locator(f"#{id} input[type=radio]").count() > 1
        expected += [f"{id}-view"] * views + ["allocation-round"] * (id == "allocation") + ["The numbers"]
    assert reached == expected
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_dark_and_light_differ_and_both_can_be_read(opened: Callable[..., Watching], report: str) -> None:
    luminance = """name => {
        const value = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
        const hex = value.length === 4 ? [...value.slice(1)].map((x) => x + x).join("") : value.slice(1);
        const parts = [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255);
        const linear = parts.map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    }"""
    colours = {}
    for scheme in ("light", "dark"):
        page = opened(report, color_scheme=scheme).page
        line = page.locator("#accuracy .scatterlayer .js-line").first.evaluate("line => getComputedStyle(line).stroke")
        colours[scheme] = (page.evaluate("getComputedStyle(document.body).backgroundColor"), line)
        surface = page.evaluate(luminance, "surface")

        def contrast(name: str, page: Page = page, surface: float = surface) -> float:
            mine = page.evaluate(luminance, name)
            return float((max(mine, surface) + 0.05) / (min(mine, surface) + 0.05))

        assert min(contrast(name) for name in ("text", "quiet", "link")) >= 4.5
        assert min(contrast(f"colour-{i}") for i in range(8)) >= 3
    assert all(light != dark for light, dark in zip(colours["light"], colours["dark"], strict=True))
    page.emulate_media(color_scheme="light")
    expect(page.locator("#accuracy .scatterlayer .js-line").first).to_have_css("stroke", colours["light"][1])


def test_an_old_run_has_no_empty_plot(opened: Callable[..., Watching], run: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    shutil.copy(run / "experiment.toml", old)
    fields = ("round", "cohort", "ranks", "metrics", "missing", "rejected", "uplink_bytes", "downlink_bytes", "seconds")
    kept = [{name: line[name] for name in fields} | {"clients": {}} for line in lines_of(run)]
    (old / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    (tmp_path / "old.html").write_text(html(content_of(page_of([old]))))
    page = opened((tmp_path / "old.html").as_uri()).page
    check_drawn(page, ["accuracy", "loss", "allocation", "traffic", "failures"])
    check_rows(page)
    assert page.locator("#left-out li").count() == 7


def test_names_and_reasons_are_shown_as_they_are(opened: Callable[..., Watching], tmp_path: Path) -> None:
    hostile = '<a href="https://example.org">x</a><img src=x onerror="document.title = 1">'
    clients = [{"id": 0, "name": hostile, "examples": 4, "budget": {}, "labels": {hostile: 3, "sky": 1}}]
    lines = [line(0, missing={"0": hostile}), line(1)]
    scores = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "examples": 4}
    matrix = {"labels": [hostile, "sky"], "counts": [[2, 2], [2, 2]]}
    summary = summary_of(lines, per_class={hostile: scores, "sky": {**scores, "f1": 0.4}}, confusion=matrix)
    folder = write_run(tmp_path / "run", lines, clients, summary)
    (tmp_path / "run.html").write_text(html(content_of(page_of([folder]))))
    page = opened((tmp_path / "run.html").as_uri()).page
    page.locator("#failures").get_by_role("radio", name="each client").check()
    page.locator("#failures summary").click()
    expect(page.locator("#failures td").first).to_have_text(hostile)
    expect(page.locator("#labels .xtick text").first).to_have_text(hostile)
    page.locator("#classes").get_by_role("radio", name="confusion in examples").check()
    expect(page.locator("#classes .ytick text", has_text=f"{hostile[:11]}…")).to_have_count(1)
    page.locator("#classes summary").click()
    expect(page.locator("#classes td").first).to_have_text(hostile)
    expect(page.locator("#story")).to_contain_text(hostile)
    assert page.locator("main a, main img").count() == 0
    assert page.title() == "run · hellora"


@pytest.mark.parametrize(("classes", "view"), [(50, "confusion"), (60, "most confused")])
def test_many_classes_with_long_names_fit_a_phone(
    opened: Callable[..., Watching], tmp_path: Path, classes: int, view: str
) -> None:
    names = [f"a class of which nobody knows the number {i}" for i in range(classes)]
    labels = list(range(classes))
    found = PerClass.of([*labels, *labels], [*labels, *labels[1:], 0])
    lines = [line(round, per_class=found.scores(names) if classes <= 50 else None) for round in range(3)]
    summary = summary_of(lines, per_class=found.scores(names), **found.confusion(names))
    folder = write_run(tmp_path / "run", lines, summary=summary)
    (tmp_path / "run.html").write_text(html(content_of(page_of([folder]))))
    page = opened((tmp_path / "run.html").as_uri(), 390, color_scheme="dark").page
    section = page.locator("#classes")
    section.get_by_role("radio", name=view, exact=True).check()
    assert section.locator(".plot").evaluate(DRAWN) > 0
    assert section.locator(".plot").evaluate(OVERLAPS) == []
    plot = section.locator(".plot .plot-container .bglayer").first.bounding_box()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert plot is not None
    assert plot["width"] > 110, "names leave room for what is drawn"


# -------------------------------------------------------------------------------------------------- several runs


def test_answers_are_a_table_of_texts(opened: Callable[..., Watching], tmp_path: Path) -> None:
    write_run(tmp_path, [line(0)], task={"name": "causal_lm"})
    answer = {"row": 0, "prompt": "What is it?", "reference": "A boat.", "answer": "<b>one</b>\nand " + "two " * 60}
    later = {**answer, "round": 0, "answer": "A ship."}
    (tmp_path / "answers.jsonl").write_text(json.dumps({**answer, "round": None}) + "\n" + json.dumps(later) + "\n")
    (tmp_path / "report.html").write_text(html(content_of(page_of([tmp_path]))))
    for width in (360, 1280):
        page = opened((tmp_path / "report.html").as_uri(), width=width).page
        cells = page.locator("#answers td")
        assert cells.all_text_contents() == ["What is it?", answer["answer"], "A ship.", "A boat."]
        expect(page.locator("#answers .plot, #answers details")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "only the table scrolls"
        assert page.locator("#answers.wide").count() == 1


@pytest.mark.parametrize("width", [1280, 390])
def test_the_comparison_switches_what_it_compares(
    opened: Callable[..., Watching], comparison: Path, tmp_path: Path, width: int
) -> None:
    file = tmp_path / "cmp.html"
    file.write_text(html(content_of(page_of([comparison]))))
    page = opened(file.as_uri(), width, color_scheme="dark" if width == 390 else "light").page
    expect(page.locator("#end tbody tr")).to_have_count(4)  # the table is in sight
    check_drawn(
        page, ["end", "differences", "sweep-data.alpha", *(f"{m}-{s}" for s in ALPHAS for m in ("accuracy", "loss"))]
    )
    rows = json.loads((comparison / "table.json").read_text())["rows"]
    page.locator("#end").get_by_role("radio", name="worst client").check()
    for place, method in enumerate(("random_layers", "fed_hello")):
        expected = [row["values"]["worst_client"] for row in rows if row["method"] == method]
        means, up, down = page.locator("#end .plot").evaluate(
            f"plot => [plot.data[{place}].x, plot.data[{place}].error_x.array, plot.data[{place}].error_x.arrayminus]"
        )
        assert means == pytest.approx([each["mean"] for each in expected])
        assert up == pytest.approx([min(each["half"], 1 - each["mean"]) for each in expected])
        assert down == pytest.approx([min(each["half"], each["mean"]) for each in expected])
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    check_colours(page, ["random_layers", "fed_hello"])
    for plot in page.locator(".plot").all():
        assert plot.evaluate(CUT_OFF) == plot.evaluate(OVERLAPS) == []


def check_colours(page: Page, methods: list[str]) -> None:
    """Each method is drawn in one colour, its intervals, too, and no other method in that."""
    found: dict[str, set[str]] = {}
    for plot in page.locator(".plot").all():
        for name, colours in plot.evaluate(COLOURS):
            found.setdefault(name.removesuffix(", 95 %"), set()).update(each[:7] for each in colours if each)
    assert list(found) == methods
    assert all(len(colours) == 1 for colours in found.values()), found
    assert len(set[str]().union(*found.values())) == len(methods)


# ---------------------------------------------------------------------------------------------------------- live


def test_a_run_in_progress_is_followed(opened: Callable[..., Watching], run: Path, tmp_path: Path) -> None:
    live, lines = tmp_path / "live", (run / "rounds.jsonl").read_text().splitlines(keepends=True)
    live.mkdir()
    for name in ("experiment.toml", "clients.json"):
        shutil.copy(run / name, live)
    (live / "rounds.jsonl").write_text("")
    with serving(live) as server:
        watching = opened(f"http://127.0.0.1:{server.server_address[1]}/")
        page = watching.page
        state, facts = page.locator("#state"), page.locator("#facts")
        expect(state).to_have_text("Not ended: while the run goes on, new rounds appear here.")
        expect(page.locator("main > section")).to_have_count(1)  # the labels
        (live / "rounds.jsonl").write_text("".join(lines[:2]))
        expect(facts).to_contain_text("2 of 4 rounds", timeout=10_000)
        check_rows(page)  # before anything is measured that stands beside the spectrum
        slider = page.get_by_role("slider", name="Round")
        assert slider.input_value() == "1"
        slider.focus()
        page.keyboard.press("Home")
        page.get_by_role("radio", name="bytes", exact=True).first.check()
        slider.focus()
        with (live / "rounds.jsonl").open("a") as file:
            file.write(lines[2] + lines[3][:20])
        expect(facts).to_contain_text("3 of 4 rounds", timeout=10_000)
        assert (slider.input_value(), slider.get_attribute("max")) == ("0", "2")
        assert ranks_shown(page) == ranks_of(json.loads(lines[0]), 6)
        assert page.evaluate("document.activeElement.id") == "allocation-round"
        assert page.get_by_role("radio", name="bytes", exact=True).first.is_checked()
        page.keyboard.press("End")
        shutil.copy(run / "summary.json", live)
        (live / "rounds.jsonl").write_text("".join(lines))
        expect(state).to_have_text("The run has ended.", timeout=10_000)
        expect(facts).to_contain_text("4 of 4 rounds", timeout=10_000)
        assert slider.input_value() == "3"  # at the end, it follows the last round
        check_rows(page)
        assert all(plot.evaluate(DRAWN) > 0 for plot in page.locator(".plot").all())
    watching.check()
    expect(state).to_contain_text("does not answer", timeout=10_000)
    watching.errors.clear()  # Chromium notes each connection that is refused


# --------------------------------------------------------------------------------------------------- the commands


def test_the_report_is_written_into_the_run_s_folder(
    hellora: Callable[..., Any], run: Path, comparison: Path, tmp_path: Path
) -> None:
    answer = hellora("report", run)
    assert (answer.status, answer.err) == (0, "")
    assert f"report: {run / 'report.html'}, 4." in answer.out
    assert hellora("report", comparison, "--out", tmp_path / "new" / "cmp.html").status == 0
    assert "<title>Comparison" in (tmp_path / "new" / "cmp.html").read_text()
    answer = hellora("report", run, comparison / "cells/alpha-1.0/fed_hello/seed-0", "--out", tmp_path / "both.html")
    assert answer.status == 0


@pytest.mark.parametrize("command", ["report", "watch"])
def test_a_folder_without_a_run_is_refused_in_one_line(
    hellora: Callable[..., Any], tmp_path: Path, command: str
) -> None:
    answer = hellora(command, tmp_path)
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert "no folder of a run" in answer.err


def test_watch_says_where_it_is_and_ends_on_ctrl_c(run: Path) -> None:
    command = [sys.executable, "-m", "hellora", "watch", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert re.search(r"http://127\.0\.0\.1:\d+/ ", said)
    assert (process.returncode, out, err) == (0, "stopped\n", "")


@pytest.mark.parametrize(
    ("module", "absent"),
    [("hellora.cli.app", "plotly"), ("hellora.reporting.overview", "torch"), ("hellora.reporting.watch", "torch")],
)
def test_a_command_does_not_wait_for_what_it_does_not_need(module: str, absent: str) -> None:
    code = f"import sys, {module}; sys.exit({absent!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
