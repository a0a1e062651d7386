"""Lines on a terminal, which has an edge, and in a file, which has none."""

from io import StringIO

import pytest
from rich.console import Console

from hellora.runs import terminal
from hellora.runs.terminal import Voice, say

LONG = f"  {'name':<28}" + "words of a description that go on, at brackets [x] and at a-b, below themselves " * 2


def printed(text: str, width: int, terminal: bool = True, under: int = 0) -> list[str]:
    file = StringIO()
    say(Console(file=file, width=width, force_terminal=terminal, color_system=None), text, under)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_line_goes_on_below_itself_at_whole_words(width: int) -> None:
    lines = printed(LONG, width, under=30)
    assert len(lines) > 1
    assert all(len(line) <= max(width, 50) for line in lines)
    assert lines[0].startswith(LONG[:35])
    assert all(line.startswith(" " * 30) for line in lines[1:])
    assert " ".join(lines).split() == LONG.split(), "no word is broken"


def test_a_word_that_does_not_fit_is_not_broken() -> None:
    path = "/" + "folder/" * 30
    assert printed(f"adapter: {path}", 80) == ["adapter:", path]


def test_a_file_has_no_edge() -> None:
    assert printed(LONG, 80, terminal=False) == [LONG]


def test_what_fits_stays_as_it_is() -> None:
    assert printed("  a   b  ", 80) == ["  a   b  "]


def test_a_command_to_copy_stays_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    file = StringIO()
    narrow = Console(file=file, width=40, force_terminal=True, color_system=None)
    monkeypatch.setattr(terminal, "plain_console", lambda **_: narrow)
    command = f"stopped; go on with: hellora run {'--set rounds=3 ' * 9}--resume"
    Voice().insist(command)
    assert file.getvalue() == command + "\n"
