"""What the documentation's site adds to its pages: the README as home, links to the repository's files, a row for each
setting, and formulas as MathML, which a browser draws by itself."""

import logging
import re
from collections.abc import Iterable, Iterator
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
CONSOLE = re.compile(r'<div class="language-console highlight">.*?</div>', re.DOTALL)
OPTION = re.compile(r"(?<=[\s>])--[a-z][\w-]*")
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
    """Formulas, written as LaTeX between dollars, become MathML; in commands, no line ends within an option."""
    html = CONSOLE.sub(lambda block: OPTION.sub(r'<span class="option">\g<0></span>', block[0]), html)
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
    yield rows_of(catalogue.entry(name, catalogue.TABLE).settings)
    for (section, key), kind in NAMING.items():
        if section == name:
            yield f"### `{section}.{key}`"
            yield from of_kind(kind)


def of_kind(kind: str) -> Iterator[str]:
    """Yield the settings of all strategies of a kind, and which have none."""
    (section, _), without = registry.KEYS[kind], list[str]()
    for name in registry.names(kind):
        found = outline(f"{registry.FOLDERS[kind][0]}.{name}", base=registry.base_of(kind))
        page = catalogue.page_of_strategy(kind, name, list(found.defaults))
        word = f"[`{name}`]({Path(page).relative_to('docs')})" if page else f"`{name}`"
        if found.defaults:
            yield f"{word}: {found.summary}"
            yield rows_of(catalogue.settings(found, section))
        else:
            without.append(word)
    if without:
        yield f"Without settings: {', '.join(without)}."


def rows_of(settings: Iterable[Setting]) -> str:
    """Return a table with a row for each setting, under its name alone, in a frame that the style sheet knows."""
    lines = [["setting", "takes", "default", "what it means"], ["---"] * 4]
    for setting in settings:
        default = setting.value if setting.value in ("needed", "not set") else f"`{setting.value}`"
        lines.append([f"`{setting.key.rpartition('.')[2]}`", setting.takes, default, setting.meaning])
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f'<div class="settings" markdown>\n\n{text}\n\n</div>'
