"""What the documentation's site adds to its pages: the README as home, links to the repository's files, and formulas
as MathML, which a browser draws by itself."""

import logging
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from posixpath import relpath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")
FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL)


def on_startup(**_: Any) -> None:
    """`--quiet` hides progress, but no warnings: `strict` counts those that are logged."""
    log = logging.getLogger("mkdocs")
    log.setLevel(min(log.level, logging.WARNING))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The README, and every file of the repository that one of the pages links to, is a file of the site."""
    waiting = [ROOT / "README.md", *(ROOT / "docs" / file.src_uri for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        page = waiting.pop()
        if files.get_file_from_path(place(page)) is None:
            files.append(File.generated(config, place(page), abs_src_path=str(page)))
        if page.suffix == ".md":
            for _, target in links(page, page.read_text()):
                if target not in seen:
                    seen.add(target)
                    waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Links lead to where the site has the files."""
    here = Path(page.file.abs_src_path or "")
    for text, target in links(here, markdown):
        there = relpath(place(target), str(Path(page.file.src_uri).parent))
        markdown = re.sub(rf"(?<=\]\(){re.escape(text)}(?=[#)])", lambda _, there=there: there, markdown)
    return markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Formulas, written as LaTeX between dollars, become MathML."""
    return FORMULA.sub(mathml, html)


def mathml(match: re.Match[str]) -> str:
    if match["tag"] == "span":
        return convert(unescape(match["latex"]))
    return f'<div class="formula">{convert(unescape(match["latex"]), display="block")}</div>'


def links(page: Path, markdown: str) -> Iterator[tuple[str, Path]]:
    """The links of a page to files of the repository: as they are written, and where they lead."""
    for text in sorted({match["path"] for match in LINK.finditer(markdown)}):
        target = (page.parent / text).resolve()
        if target.is_file() and target.is_relative_to(ROOT):
            yield text, target


def place(file: Path) -> str:
    """Where the site has a file of the repository: pages of docs/ at the top, the README as index."""
    path = file.relative_to(ROOT)
    if path == Path("README.md"):
        return "index.md"
    return str(path.relative_to("docs") if path.is_relative_to("docs") else path)
