"""The pages of the documentation: their blocks of code, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)
PROMPT = re.compile(r"^(?P<machine>\w*)\$ +")


@dataclass(frozen=True)
class Block:
    """What stands between two fences; `title` is the file that it is."""

    language: str
    title: str | None
    text: str


@dataclass(frozen=True)
class Command:
    """A line after a prompt, on the reader's machine or on the one that the prompt names."""

    words: tuple[str, ...]
    machine: str

    def __str__(self) -> str:
        return shlex.join(self.words)


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = [Block(match["language"], match["title"], match["text"]) for match in FENCE.finditer(text)]
    assert 2 * len(found) == len(re.findall(r"^\s*```", text, re.MULTILINE)), f"{page.name}: a fence without language"
    return found


def commands(block: Block) -> Iterator[Command]:
    """The commands of a console block; what they print is left out."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if prompt := PROMPT.match(line):
            yield Command(tuple(shlex.split(line[prompt.end() :], comments=True)), prompt["machine"])
