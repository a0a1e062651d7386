"""What the documentation's site adds to its pages: the README as home, links to the repository's files, a row for each
setting, and formulas as MathML, which a browser draws by itself."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from html import unescape
from pathlib import Path
from posixpath import relpath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from hellora.experiments import catalogue, registry
from hellora.experiments.catalogue import Setting
from hellora.experiments.outlines import outline
from hellora.experiments.own_code import NAMING

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")
SHOWN = re.compile(r"^```console\n\$ hellora show (?P<table>\w+)\n```\n", re.MULTILINE)
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
    """Links lead to where the site has the files, and the page of settings has a row for each."""
    here = Path(page.file.abs_src_path or "")
    if here == ROOT / "docs" / "settings.md":
        markdown = with_settings(markdown)
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


# ------------------------------------------------------------------------------------------- a row for each setting


def with_settings(markdown: str) -> str:
    """Put below each `hellora show TABLE` of the page what it prints, and the settings of what the table can name."""
    return SHOWN.sub(lambda shown: shown[0] + "\n" + "\n\n".join(tables(shown["table"])) + "\n", markdown)


def tables(name: str) -> Iterator[str]:
    """Yield the parts below a table's heading, as Markdown."""
    own = catalogue.entry(name, catalogue.TABLE).settings
    yield table(["setting", "takes", "default", "what it means"], map(cells, own))
    for (section, key), kind in NAMING.items():
        if section == name:
            yield f"### `{section}.{key}`"
            yield from of_kind(kind)


def of_kind(kind: str) -> Iterator[str]:
    """Yield the settings of all strategies of a kind, and which have none."""
    (section, _), rows, without = registry.KEYS[kind], list[list[str]](), list[str]()
    for name in registry.names(kind):
        found = outline(f"{registry.FOLDERS[kind][0]}.{name}", base=registry.base_of(kind))
        page = catalogue.page_of_strategy(kind, name, list(found.defaults))
        rows += [[linked(name, page), *cells(setting)] for setting in catalogue.settings(found, section)]
        without += [] if found.defaults else [linked(name, page)]
    if rows:
        yield table([kind.replace("_", " "), "setting", "takes", "default", "what it means"], rows)
    if without:
        yield f"Without settings: {', '.join(without)}."


def linked(name: str, page: str) -> str:
    return f"[`{name}`]({Path(page).relative_to('docs')})" if page else f"`{name}`"


def cells(setting: Setting) -> list[str]:
    """Return the cells of a row: the setting's own name, without its table."""
    name = setting.key.rpartition(".")[2]
    default = setting.value if setting.value in ("needed", "not set") else f"`{setting.value}`"
    return [f"`{name}`", setting.takes, default, setting.meaning]


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in a frame by which the style sheet knows it."""
    lines = [heading, ["---"] * len(heading), *rows]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f'<div class="settings" markdown>\n\n{text}\n\n</div>'
