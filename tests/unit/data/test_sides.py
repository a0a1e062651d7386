"""The classes that clients agree on, each of which knows its own labels only."""

from pathlib import Path

import pytest

from hellora.core.errors import InputError
from hellora.data.settings import DataSettings
from hellora.data.sides import Classes, agreed, server_corpus


@pytest.mark.parametrize(
    ("own", "together"),
    [
        ((("10", "9"), ("2",)), ("2", "9", "10")),
        ((("10", "9"), ("sea",)), ("10", "9", "sea")),
    ],
)
def test_labels_of_all_clients_are_in_order(own: tuple[tuple[str, ...], ...], together: tuple[str, ...]) -> None:
    assert agreed([Classes(labels, labels, False) for labels in own]).values == together


def test_a_servers_validation_examples_are_a_part_of_its_test_examples(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("text,label\n" + "".join(f"word {i},{'ab'[i % 2]}\n" for i in range(20)))
    classes = Classes(("a", "b"), ("a", "b"), True)
    settings = {"name": str(tmp_path), "proxy_examples": 0}

    def texts(**more: object) -> tuple[list[str], list[str] | None]:
        found = server_corpus(DataSettings(**settings, **more), "text", 0, classes)  # type: ignore[arg-type]
        return found.test["text"][:], None if found.validation is None else found.validation["text"][:]

    whole, none = texts()
    test, validation = texts(validation=0.25)
    assert (len(whole), none, len(test)) == (20, None, 15)
    assert validation is not None
    assert sorted([*test, *validation]) == sorted(whole)
    assert texts(validation=0.25, evaluate_on="validation") == (validation, validation)
    (tmp_path / "test.csv").write_text("text,label\nword,a\n")
    with pytest.raises(InputError, match=r"data\.validation: .* has too few test examples to hold any out"):
        texts(validation=0.25)
