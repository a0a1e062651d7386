"""The page's file: what is inside, and that text from data stays text."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import ended_run, line, write_run

from hellora.core.errors import InputError
from hellora.reporting.overview import page_of
from hellora.reporting.page import content_of, html, write

HOSTILE = "</script><script>document.title = 'taken'</script><!--<script>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return ended_run(tmp_path / "run")


def content_in(text: str) -> Any:
    found = re.search(r'<script id="content" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_content_comes_back_from_the_file(folder: Path) -> None:
    content = content_of(page_of([folder]))
    assert content_in(html(content)) == content
    (allocation,) = [section for section in content["sections"] if section["id"] == "allocation"]
    assert allocation["steps"]["trained"] == [[0, 1], [0, 1]]
    assert allocation["steps"]["ranks"] == "AAQCAAAEAgA="  # 0 4 2 0, twice


def test_text_from_data_cannot_leave_its_place(tmp_path: Path) -> None:
    clients = [{"id": 0, "name": HOSTILE, "examples": 1, "budget": {}, "labels": {HOSTILE: 1}}]
    folder = write_run(tmp_path / "<b>&run", [line(0, missing={"0": HOSTILE})], clients)
    text = html(content_of(page_of([folder])))
    assert HOSTILE not in text
    assert "<title>&lt;b&gt;&amp;run · hellora</title>" in text
    assert HOSTILE in json.dumps(content_in(text))
    assert text.count("</script>") == 3


def test_a_file_asks_nobody_and_a_live_page_only_where_it_came_from(folder: Path) -> None:
    content = content_of(page_of([folder]))
    assert "default-src 'none'" in html(content)
    assert "connect-src 'none'" in html(content)
    assert "connect-src 'self'" in html(content, live=True)
    assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="(?!data:)', html(content))


def test_a_file_that_is_no_html_by_its_name_is_refused(folder: Path, tmp_path: Path) -> None:
    page = page_of([folder])
    with pytest.raises(InputError, match=r"a report is an HTML file: name it x\.html"):
        write(page, tmp_path / "x.pdf")
    assert not (tmp_path / "x.pdf").exists()
    for name in ("x.html", "x.HTM"):
        write(page, tmp_path / name)


def test_ranks_take_a_byte_each(tmp_path: Path) -> None:
    ranks = np.random.default_rng(0).integers(0, 16, (40, 32)).tolist()
    lines = [
        line(round, cohort=list(range(40)), ranks={str(i): row for i, row in enumerate(ranks)}) for round in range(9)
    ]
    few, many = (
        len(json.dumps(content_of(page_of([write_run(tmp_path / f"{count}", lines[:count])])))) for count in (3, 9)
    )
    assert many - few < 6 * (40 * 32 * 4 / 3 + 1000)  # base64, and what else a round has
