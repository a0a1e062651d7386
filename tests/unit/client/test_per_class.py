"""Scores by the classes' names, as summaries and rounds have them."""

from hellora.client.per_class import by_name, scores_of_round
from hellora.core.per_class import MOST, PerClass


def test_the_head_may_have_more_room_than_there_are_names() -> None:
    found = by_name(PerClass.of([0, 1, 1], [0, 1, 3]), ("sea", "sky"))
    assert list(found["per_class"]) == found["confusion"]["labels"] == ["sea", "sky", "class 3"]
    assert by_name(PerClass(), ()) == {}


def test_a_round_has_the_scores_of_few_classes() -> None:
    few, many = (PerClass.of(labels, labels) for labels in (range(MOST), range(MOST + 1)))
    names = [str(label) for label in range(MOST + 1)]
    assert scores_of_round(few, names) == by_name(few, names)["per_class"]
    assert scores_of_round(many, names) is None
    assert scores_of_round(PerClass(), ()) is None
