"""Questions about the standard library: their number on this Python, and the rules that make them, on a few files."""

from collections import Counter
from pathlib import Path

import pytest

from hellora.core.errors import InputError
from hellora.data import stdlib_docs, stdlib_questions
from hellora.data.settings import DataSettings
from hellora.data.sources import load_corpus

SPLITS = ("train", "proxy", "test")
MANY = "\n".join(f'def f{i}():\n    """The number {i} is what comes out"""' for i in range(60))  # for every split some


def test_there_are_enough_and_each_is_asked_and_answered_once() -> None:
    splits = stdlib_questions.load()
    rows = [row for name in SPLITS for row in splits[name]]
    assert len(rows) >= 3500
    assert len({row["instruction"] for row in rows}) == len(rows)
    assert len({row["response"].casefold() for row in rows}) == len(rows), "no answer is in two splits"
    topics = Counter(row["label"] for row in rows)
    assert len(topics) == 20
    assert min(topics.values()) >= 40
    shares = [len(splits[name]) / len(rows) for name in SPLITS]
    assert shares == pytest.approx([0.80, 0.05, 0.15], abs=0.02)
    said = {row["instruction"]: row["response"] for row in rows}
    assert said["What does `os.path.expanduser` do in Python?"].startswith("Expand ~ and ~user constructions.")
    assert not [row for row in rows if "._" in row["instruction"] or row["response"][-1] not in ".!?"]


def test_it_is_a_source_of_instructions() -> None:
    corpus = load_corpus(DataSettings(name="stdlib_questions"), "instruction", seed=0)
    assert corpus.labels == tuple(stdlib_docs.TOPICS)
    row = corpus.test[0]
    assert row["prompt"].endswith(("do in Python?", "in Python?", "for?"))
    assert corpus.proxy_source.endswith("split 'proxy' of stdlib_questions")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    (tmp_path / "random.py").write_text(MANY)
    return tmp_path


def pairs() -> dict[str, tuple[str, str]]:
    """Question -> (answer, topic) of a fresh parse, without those of the numbers."""
    splits = stdlib_questions.load.__wrapped__()
    names = splits["train"].features["label"].names
    rows = [row for name in SPLITS for row in splits[name] if row["module"] != "random"]
    return {row["instruction"]: (row["response"], names[row["label"]]) for row in rows}


def test_modules_classes_and_functions_are_asked_for_in_their_own_words(library: Path) -> None:
    (library / "json").mkdir()
    (library / "json" / "__init__.py").write_text('"""Read and write JSON\n   as texts\n\nMore of it."""')
    (library / "json" / "decoder.py").write_text(
        "raise RuntimeError('imported')\n"
        'class Decoder:\n    """Makes objects out of texts."""\n'
        '    async def decode(self):\n        """Return what :func:`json.loads` and ``x`` make of it"""\n'
        '        def inner():\n            """This one is inside a function."""\n'
        'if True:\n    def loads():\n        """Read one object from a text!"""\n'
    )
    assert pairs() == {
        "What is the Python module `json` for?": ("Read and write JSON as texts.", "serialization"),
        "What is `json.decoder.Decoder` in Python?": ("Makes objects out of texts.", "serialization"),
        "What does `json.decoder.Decoder.decode` do in Python?": (
            "Return what `json.loads` and `x` make of it.",
            "serialization",
        ),
        "What does `json.decoder.loads` do in Python?": ("Read one object from a text!", "serialization"),
    }


@pytest.mark.parametrize(
    "text",
    [
        "Only four words here",
        "The options are the following ones:",
        "join(a, *p) -> a path made of all",
        "loads (text) reads an object from it",
        "x.y -> the value of it there",
        "word " * 61,
    ],
)
def test_what_is_no_answer_is_left_out(text: str, library: Path) -> None:
    (library / "csv.py").write_text(f'"""{text}"""')
    assert pairs() == {}


def test_what_is_private_is_not_asked_for_but_by_its_public_name(library: Path) -> None:
    secret = 'class _Hidden:\n    """Nobody asks for this class."""\n'
    secret += '    def f(self):\n        """Nor for what is in it."""\n'
    (library / "csv.py").write_text(secret + 'def _f():\n    """Nor for this function here."""')
    (library / "_compression.py").write_text('"""Nor for this module of theirs."""')
    (library / "asyncio").mkdir()
    (library / "asyncio" / "__main__.py").write_text('"""Nor for a program of theirs."""')
    (library / "posixpath.py").write_text('def join():\n    """Join two or more parts of paths."""')
    (library / "ntpath.py").write_text('def join():\n    """Join two or more pathname components together."""')
    assert pairs() == {"What does `os.path.join` do in Python?": ("Join two or more parts of paths.", "files")}


def test_one_answer_to_two_questions_is_kept_once(library: Path) -> None:
    (library / "csv.py").write_text('def f():\n    """Close the file when all is done."""')
    (library / "socket.py").write_text('def g():\n    """Close the FILE when all is done"""')
    assert list(pairs()) == ["What does `csv.f` do in Python?"]


def test_is_the_same_on_every_parse(library: Path) -> None:
    assert library.is_dir()
    first, second = stdlib_questions.load.__wrapped__(), stdlib_questions.load.__wrapped__()
    assert all(first[name].to_dict() == second[name].to_dict() for name in SPLITS)


def test_a_python_without_sources_is_an_input_error(library: Path) -> None:
    (library / "random.py").unlink()
    with pytest.raises(InputError, match="no Python sources to make stdlib_questions of"):
        stdlib_questions.load.__wrapped__()
