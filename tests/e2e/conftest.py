"""The command line as a person uses it, in this process so that a test need not wait for the imports."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cards
import pytest
import tomli_w

from hellora.cli.app import main

Table = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    status: int
    out: str
    err: str


@pytest.fixture
def hellora(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run `hellora ARGUMENTS`."""

    monkeypatch.setenv("PYTHONSAFEPATH", "")  # the command sets it, for processes of its own and not of the next test

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["hellora", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return Answer(int(end.value.code or 0), printed.out, printed.err)

    return call


@pytest.fixture
def small(tmp_path: Path, tiny_bert: Path, sentences: Path) -> Path:
    """An experiment file: six clients of capacity 1, 2 and 4 of 4 layers teach a tiny BERT three topics."""
    path = tmp_path / "small.toml"
    path.write_text(tomli_w.dumps(small_table(tiny_bert, sentences)))
    return path


@pytest.fixture(scope="session")
def unequal(tiny_bert: Path, sentences: Path) -> Table:
    """A small experiment whose clients have no budget yet."""
    table = small_table(tiny_bert, sentences)
    return {**table, "fleet": {}, "method": {"allocator": "everything"}, "cohort": 6, "rounds": 1}


def small_table(model: Path, data: Path) -> Table:
    return {
        "rounds": 3,
        "cohort": 3,
        "model": {"name": str(model), "rank": 4},
        "data": {"name": str(data), "clients": 6, "alpha": 1.0, "min_examples": 4},
        "fleet": {"layers": [1, 2, 4]},
        "train": {"lr": 0.03, "batch_size": 8},
        "compute": {"threads": 1},
    }


@pytest.fixture(scope="session")
def follow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cards.Follow]:
    """Run code where there is no hellora; return what it prints."""
    with cards.following(tmp_path_factory.mktemp("cards")) as run:
        yield run


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from browsing import chromium  # it needs playwright, which most tests do not

    with chromium() as found:
        yield found


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open an address in a window of its own; at the end nothing may have gone wrong in it."""
    from browsing import opening

    with opening(browser) as open_:
        yield open_
