"""How a command refuses input that cannot work: one line, status 2."""

from typing import Any


def check_refusal(answer: Any, *words: str) -> None:
    assert answer.status == 2, answer
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1, answer.err
    assert answer.err.endswith("\n")
    assert "Traceback" not in answer.out + answer.err
    for word in words:
        assert word in answer.err
