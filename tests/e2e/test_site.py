"""The documentation as a site, built once: its links, its formulas, and its pages in a headless Chromium."""

import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import markdown
import pytest
from browsing import Watching
from pages import ROOT
from playwright.sync_api import expect

from hellora.experiments import catalogue
from hellora.experiments.registry import KEYS, names, settings_of
from hellora.experiments.sections import defaults_of

pytestmark = pytest.mark.browser
WIDTHS = [(1280, "light"), (390, "dark")]
# Whatever reaches beyond the window, and is not inside something that scrolls in itself.
TOO_WIDE = """() => {
    const scrolls = (at) => at && (["auto", "scroll"].includes(getComputedStyle(at).overflowX)
        || scrolls(at.parentElement));
    return [...document.querySelectorAll("article *")]
        .filter((at) => at.getBoundingClientRect().right > innerWidth + 1 && !scrolls(at))
        .map((at) => at.outerHTML.slice(0, 80));
}"""

# Commands of which a part, such as the comment at their end, is only seen after scrolling.
HIDDEN = "blocks => blocks.filter((at) => at.scrollWidth > at.clientWidth + 1).map((at) => at.textContent.slice(0, 80))"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> list[Path]:
    found = sorted(site.rglob("*.html"))
    assert {"index.html", "api.html", "python.html", "papers.html", "faq.html"} <= {page.name for page in found}
    return found


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Parsed(HTMLParser):
    """What a page refers to, the names of its places, and its text outside code."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.references: list[str] = []
        self.places: set[str] = set()
        self.text: list[str] = []
        self.code = 0
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.references += [value for key in ("href", "src") if (value := named.get(key))]
        self.places |= {value for key in ("id", "name") if (value := named.get(key))}
        self.code += tag in ("code", "pre", "script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.code -= tag in ("code", "pre", "script", "style")

    def handle_data(self, data: str) -> None:
        if not self.code:
            self.text.append(data)


# ------------------------------------------------------------------------------------------------------ as it is built


def test_every_link_and_anchor_leads_somewhere(site: Path, pages: list[Path]) -> None:
    parsed = {page: Parsed(page) for page in pages}
    followed = 0
    for page in pages:
        if page.name == "404.html":  # its links are of the server's root
            continue
        for reference in parsed[page].references:
            split = urlsplit(reference)
            if split.scheme or split.netloc:
                assert split.scheme in ("https", "mailto", "data"), (page.name, reference)
                continue
            target = (page.parent / unquote(split.path)).resolve() if split.path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (page.name, reference)
            assert target.is_relative_to(site), (page.name, reference)
            if split.fragment and target in parsed:
                assert unquote(split.fragment) in parsed[target].places, (page.name, reference)
                followed += 1
    assert followed > 100


def test_formulas_are_mathml(pages: list[Path]) -> None:
    for page in pages:
        text = "".join(Parsed(page).text)
        assert not re.search(r"\\[(\[]|\\[)\]]|\$\$", text), page.name
        assert "arithmatex" not in page.read_text(), page.name


@pytest.mark.parametrize(
    ("written", "display"), [(r"so $\bar A = \sum_k p_k A_k$ here", "inline"), ("$$\nW + s B A < 1\n$$", "block")]
)
def test_a_formula_becomes_mathml(hooks: ModuleType, written: str, display: str) -> None:
    settings = {"pymdownx.arithmatex": {"generic": True}}
    html = markdown.markdown(written, extensions=["pymdownx.arithmatex"], extension_configs=settings)
    shown = hooks.on_page_content(html, None, None, None)
    assert f'display="{display}"' in shown
    assert re.search(r"<math.*<mi>A</mi>.*</math>", shown, re.DOTALL)
    assert not re.search(r"arithmatex|\\sum|\$", shown)


def test_the_reference_has_docstrings_fields_and_what_is_raised(site: Path) -> None:
    text = re.sub(r"\s+", " ", "".join(Parsed(site / "api.html").text))
    assert "The rank that each client of the round's cohort trains in each layer" in text  # plan() returns
    assert "there is no such run or client, the folder exists" in text  # export() raises
    assert "(rank, d_in)" in text  # the comment beside LoraPair.A
    assert "what fits a budget in bytes or seconds" in text  # RoundContext.planner, of another file


def test_the_page_of_settings_has_a_row_for_each(site: Path) -> None:
    rows = re.findall(r"<tr>\s*(.*?)\s*</tr>", (site / "settings.html").read_text(), re.DOTALL)
    cells = [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", row, re.DOTALL)] for row in rows]
    found = Counter(row[0] for row in cells if row)
    own = [key for place in catalogue.TABLES.values() for key in defaults_of(place)]
    named = [key for kind in KEYS for name in names(kind) for key in settings_of(kind, name)]
    assert found == Counter([*own, *named])
    assert all(all(row) and len(row) == 4 for row in cells if row)
    assert ["batch_size", "whole number", "16", "examples per step"] in cells


def test_the_results_on_the_home_page_are_those_of_the_benchmark() -> None:
    tables = (ROOT / "benchmarks" / "results" / "trec" / "table.md").read_text().split("## ")
    measured = {text.partition("\n")[0]: text for text in tables}
    rows = re.findall(
        r"^\| (\w+) \| (0.*?) \| (0.*?) \| (.*?) \| (.*?) \|$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 5
    for name, alike, skewed, up, down in rows:
        for setting, accuracy in (("iid", alike), ("dirichlet", skewed)):
            (line,) = re.findall(rf"^\| {name} \|.*$", measured[setting], re.MULTILINE)
            assert accuracy in line
            assert f"| {up} | {down} |" in line


# -------------------------------------------------------------------------------------------------------- in a browser


@pytest.mark.parametrize(("width", "scheme"), WIDTHS)
def test_a_page_opens_from_disk_without_a_word_to_anybody(
    opened: Callable[..., Watching], site: Path, width: int, scheme: str
) -> None:
    backgrounds = set()
    for name in ("index", "api", "papers", "report"):
        page = opened((site / f"{name}.html").as_uri(), width, color_scheme=scheme).page
        expect(page.locator("article h1")).to_be_visible()
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    (background,) = backgrounds
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_no_page_is_wider_than_its_window_every_figure_loads_and_commands_are_seen_whole(
    opened: Callable[..., Watching], site: Path, pages: list[Path]
) -> None:
    page = opened((site / "index.html").as_uri()).page
    for each in pages:
        if each.name == "404.html":
            continue
        page.goto(each.as_uri())
        for width, _ in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, each.name
            assert page.evaluate(TOO_WIDE) == [], each.name
            assert page.locator(".language-console code").evaluate_all(HIDDEN) == [], (each.name, width)
        empty = "images => images.filter((image) => !image.naturalWidth).map((image) => image.src)"
        assert page.locator("article img").evaluate_all(empty) == [], each.name


@pytest.fixture
def served(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("words", "found"), [("stragglers asynchronous", "faq.html"), ("label_smoothing", "settings.html#taskname")]
)
def test_the_search_finds_a_page(opened: Callable[..., Watching], served: str, words: str, found: str) -> None:
    page = opened(f"{served}/index.html").page
    page.get_by_role("textbox", name="Search").click()
    page.keyboard.type(words)
    expect(page.locator(f'.md-search-result__link[href*="{found}"]').first).to_be_attached(timeout=20_000)
