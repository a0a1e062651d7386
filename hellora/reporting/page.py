"""A page is one HTML file with everything inside: plotly.js, the figures, the numbers. Nothing is fetched from
anywhere, and the page's own policy forbids it.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from hellora.core.errors import InputError
from hellora.reporting.parts import Page, Section, Steps

SCRIPTS = ("plots.js", "page.js")  # in this order: the last line of the second one draws the page


def write(page: Page, file: Path) -> None:
    """Write the page; the folder is made where there is none.

    Raises:
        InputError: it cannot be written there, or by its name it is no HTML file.
    """
    if file.suffix.lower() not in ("", ".html", ".htm"):
        raise InputError(f"{file}: a report is an HTML file: name it {file.with_suffix('.html').name}")
    text = html(content_of(page))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    except OSError as error:
        raise InputError(f"cannot write to {file}: {error.strerror}") from error


def content_of(page: Page) -> dict[str, Any]:
    """Turn a page into JSON values, as its script reads them."""
    return {
        "title": page.title,
        "story": [asdict(told) for told in page.story],
        "facts": [list(fact) for fact in page.facts],
        "notes": list(page.notes),
        "ended": page.ended,
        "sections": [section_content(section) for section in page.sections],
    }


def section_content(section: Section) -> dict[str, Any]:
    """Turn a section into JSON values."""
    return {
        "id": section.id,
        "title": section.title,
        "lead": section.lead,
        "why": section.why,
        "wide": section.wide,
        "open": section.open,
        "views": [
            {
                "label": view.label,
                "figure": json.loads(view.figure.to_json()),
                "columns": list(view.table.columns),
                "rows": [list(row) for row in view.table.rows],
                "leftOut": view.table.left_out,
            }
            for view in section.views
        ],
        "texts": None
        if section.texts is None
        else {
            "columns": list(section.texts.columns),
            "rows": [list(row) for row in section.texts.rows],
            "leftOut": section.texts.left_out,
        },
        "steps": None if section.steps is None else steps_content(section.steps),
    }


def steps_content(steps: Steps) -> dict[str, Any]:
    """Turn the ranks of all rounds into JSON values, as base64."""
    return {
        "rounds": list(steps.rounds),
        "trained": [list(places) for places in steps.trained],
        "ranks": base64.b64encode(steps.ranks).decode(),
        "dtype": steps.dtype,
        "layers": steps.layers,
        "clients": list(steps.clients),
    }


def html(content: Mapping[str, Any], live: bool = False) -> str:
    """Return the file's text. `live`: it asks where it came from for newer content, every two seconds."""
    from plotly.offline import get_plotlyjs

    folder = files("hellora.reporting")
    template = Template(folder.joinpath("page.html").read_text())
    return template.substitute(
        title=escape(str(content["title"])),
        connect="'self'" if live else "'none'",
        style=folder.joinpath("page.css").read_text(),
        content=in_script(content),
        live=json.dumps(live),
        plotly=get_plotlyjs(),
        script="".join(folder.joinpath(name).read_text() for name in SCRIPTS),
    )


def in_script(value: Any) -> str:
    """Write JSON for a <script>: no text in it can end the element, or begin a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
