"""Answers on the terminal: few, short, and nothing in them that steers it."""

from rich.cells import cell_len
from rich.console import Console

from hellora.runs.answering import shown_answers


def shown(prompt: str, answer: str, count: int = 1, round: int | None = 3) -> list[str]:
    lines = [{"round": round, "row": row, "prompt": prompt, "reference": "r", "answer": answer} for row in range(count)]
    return list(shown_answers(Console(width=200), round, lines))


def test_a_prompt_and_its_answer() -> None:
    assert shown("What is it?", "A boat,\n  on the\tsea.") == [
        "  answers  after round 3, 1 of 1 (all are in answers.jsonl)",
        "        ?  What is it?",
        "        >  A boat, on the sea.",
    ]
    assert shown("What?", "", round=None)[0] == "  answers  before training, 1 of 1 (all are in answers.jsonl)"
    assert shown("What?", " ")[2] == "        >  (nothing)"


def test_of_several_turns_the_last_question_is_shown() -> None:
    assert shown("system: Be short.\nuser: Hello.\nassistant: Yes?\nuser: What is it?", "A boat.")[1] == (
        "        ?  … What is it?"
    )
    assert shown("Which is right?\nuser: a\nuser: b", "a")[1] == "        ?  Which is right? user: a user: b"


def test_three_at_most_in_eighty_columns() -> None:
    long = "several words that go on " * 20
    lines = shown(long, long, count=5)
    assert lines[0] == "  answers  after round 3, 3 of 5 (all are in answers.jsonl)"
    assert len(lines) == 1 + 3 * (1 + 2)
    assert max(map(cell_len, lines)) <= 80
    assert lines[1].endswith("…")
    assert lines[2].startswith("        >  several")
    assert lines[3].startswith("           ")
    assert lines[3].endswith("…")


def test_wide_letters_and_one_endless_word_fit_too() -> None:
    for text in ("你好" * 100, "x" * 300):
        lines = shown(text, text)
        assert max(map(cell_len, lines)) <= 80
        assert len(lines) == 4


def test_nothing_in_an_answer_steers_the_terminal() -> None:
    assert shown("a\x1b[31mb", "c\x07\x9bd [bold]e[/bold]") == [
        "  answers  after round 3, 1 of 1 (all are in answers.jsonl)",
        "        ?  a [31mb",
        "        >  c d [bold]e[/bold]",
    ]
