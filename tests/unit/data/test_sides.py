"""The classes that clients agree on, each of which knows its own labels only."""

import pytest

from hellora.data.sides import Classes, agreed


@pytest.mark.parametrize(
    ("own", "together"),
    [
        ((("10", "9"), ("2",)), ("2", "9", "10")),
        ((("10", "9"), ("sea",)), ("10", "9", "sea")),
    ],
)
def test_labels_of_all_clients_are_in_order(own: tuple[tuple[str, ...], ...], together: tuple[str, ...]) -> None:
    assert agreed([Classes(labels, labels, False) for labels in own]).values == together
