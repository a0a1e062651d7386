"""The embedded corpus: its size and balance on this Python, and the rules that make it, on a library of a few files."""

from collections import Counter
from pathlib import Path

import pytest

from hellora.core.errors import InputError
from hellora.data import stdlib_docs

SPLITS = ("train", "proxy", "test")


def test_is_large_and_balanced_enough_to_learn_from() -> None:
    splits = stdlib_docs.load()
    topics = Counter(label for name in SPLITS for label in splits[name]["label"])
    size = topics.total()
    assert size >= 6000
    assert len(topics) == 20 == len(splits["train"].features["label"].names)
    assert max(topics.values()) / size <= 0.22
    assert min(topics.values()) >= 80
    shares = [len(splits[name]) / size for name in SPLITS]
    assert shares == pytest.approx([0.80, 0.05, 0.15], abs=0.02)


def test_no_text_is_in_two_splits_whatever_its_case_and_spacing() -> None:
    splits = stdlib_docs.load()
    keys = [" ".join(text.split()).casefold() for name in SPLITS for text in splits[name]["text"]]
    assert len(set(keys)) == len(keys)
    assert min(len(key.split()) for key in keys) >= stdlib_docs.MIN_WORDS


def test_is_parsed_once() -> None:
    assert stdlib_docs.load() is stdlib_docs.load()


def test_no_module_has_two_topics() -> None:
    modules = [module for names in stdlib_docs.TOPICS.values() for module in names.split()]
    assert len(set(modules)) == len(modules)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    return tmp_path


def examples() -> dict[str, tuple[str, str]]:
    """Text -> (topic, module) of a fresh parse."""
    splits = stdlib_docs.load.__wrapped__()
    names = splits["train"].features["label"].names
    return {row["text"]: (names[row["label"]], row["module"]) for name in SPLITS for row in splits[name]}


def write(path: Path, *docstrings: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    functions = [f'def f{i}():\n    """{text}"""\n' for i, text in enumerate(docstrings)]
    path.write_text("\n".join(["raise RuntimeError('imported')", *functions]))


def test_takes_first_paragraphs_of_five_words_without_importing(library: Path) -> None:
    write(
        library / "json" / "decoder.py",
        "Decode one\n    document   from text.\n\n    More of it.",
        "Only four words here",
    )
    assert examples() == {"Decode one document from text.": ("serialization", "json")}


def test_leaves_out_tests_and_modules_without_a_topic(library: Path) -> None:
    write(library / "json" / "tests" / "test_it.py", "A test is not part of it")
    write(library / "idlelib" / "idle_test" / "mock.py", "Nor is a mock part of it")
    write(library / "site-packages" / "json.py", "Nor is what a user installed")
    write(library / "antigravity.py", "This module is in no topic")
    write(library / "csv.py", "Read and write rows of cells")
    assert list(examples()) == ["Read and write rows of cells"]


def test_a_text_of_two_topics_is_left_out_and_one_of_two_modules_kept_once(library: Path) -> None:
    write(library / "json.py", "Close the file when all is done", "Return the value of this thing")
    write(library / "csv.py", "Close the file when  all is done")
    write(library / "socket.py", "Return the VALUE of this thing")
    assert examples() == {"Close the file when all is done": ("serialization", "csv")}


def test_is_the_same_on_every_parse(library: Path) -> None:
    write(library / "json" / "b.py", *(f"The number {i} has this text" for i in range(30)))
    write(library / "json" / "a.py", *(f"The letter {i} has this text" for i in range(30)))
    first, second = stdlib_docs.load.__wrapped__(), stdlib_docs.load.__wrapped__()
    assert all(first[name].to_dict() == second[name].to_dict() for name in SPLITS)


@pytest.mark.usefixtures("library")
def test_a_python_without_sources_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no Python sources"):
        stdlib_docs.load.__wrapped__()
