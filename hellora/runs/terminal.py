"""Every command does this with the terminal and the environment before it begins."""

import json
import logging
import os
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console


def default_folder(name: str, resume: bool) -> Path:
    """Choose runs/NAME, or the next free runs/NAME-2, -3 …; to resume, the latest that exists."""
    candidates = [Path("runs") / (name if n == 1 else f"{name}-{n}") for n in range(1, 10_000)]
    free = next(n for n, folder in enumerate(candidates) if not folder.exists())
    return candidates[max(0, free - 1)] if resume else candidates[free]


def plain_console(to_errors: bool = False, quiet: bool = False) -> Console:
    """Make a console on which brackets and colons in names and reasons are text, not markup. A file has no edge."""
    console = Console(soft_wrap=True, markup=False, emoji=False, stderr=to_errors, quiet=quiet)
    if not console.is_terminal:
        console.width = 200
    return console


def say(console: Console, text: str, under: int = 0, style: str | None = None) -> None:
    """Print a line as it stands; on a terminal, what does not fit goes on below it, from a column on, at whole words.

    A file or a pipe has no edge: there it stays one line, which can be searched.
    """
    lines = [text]
    if console.is_terminal and len(text) > console.width:
        width = max(console.width, under + 20)
        own = text[: len(text) - len(text.lstrip())]
        lines = textwrap.wrap(
            text.lstrip(), width, initial_indent=own, subsequent_indent=" " * under,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    for line in lines:
        console.print(line, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)


@dataclass
class Voice:
    """A voice says how a command goes, and what comes of it.

    With `as_json` what comes of it is one JSON object on standard output, and all else goes to standard error. With
    `quiet` nothing is said but what comes of it.
    """

    quiet: bool = False
    as_json: bool = False

    @cached_property
    def console(self) -> Console:
        return plain_console(to_errors=self.as_json, quiet=self.quiet)

    def __call__(self, line: str, under: int = 0, style: str | None = None) -> None:
        say(self.console, line, under, style)

    def insist(self, line: str) -> None:
        """Say what a person has to know, also where nothing else is said: one line, for commands are copied."""
        console = plain_console(to_errors=self.as_json or self.quiet)
        console.print(line, highlight=False, soft_wrap=True)

    def end(self, line: str, result: Mapping[str, Any]) -> None:
        """Say where the result is, or write it as JSON."""
        if self.as_json:
            sys.stdout.write(json.dumps(result, ensure_ascii=False, default=str) + "\n")
        else:
            say(plain_console(), line)


def printable(text: str) -> str:
    """Put a text of somebody's data into one line: what cannot be printed, such as what would steer a terminal, is left
    out."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def quieten() -> None:
    """Keep libraries' notes out of our output, and waiting threads off cores that somebody else needs."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it tells of kernels it lacks
