"""How well each class is recognised, against scikit-learn; counts of parts add up to those of the whole."""

import numpy as np
import pytest
from sklearn.metrics import classification_report, confusion_matrix

from hellora.core.per_class import MOST, MOST_PAIRS, ClassCounts, PerClass, confused_pairs

TRUE, SAID = [0, 0, 0, 2, 2, 3], [0, 2, 4, 2, 2, 0]  # 1 is neither there nor said, 4 is only said
NAMES = ("sea", "sky", "<b>soil</b>", "sun", "class 4")


def test_scores_and_confusion_by_name() -> None:
    found = PerClass.of(TRUE, SAID)
    assert list(found.counts) == [0, 2, 3, 4]
    matrix = found.confusion(NAMES)["confusion"]
    assert matrix["labels"] == ["sea", "<b>soil</b>", "sun", "class 4"]
    assert matrix["counts"] == confusion_matrix(TRUE, SAID, labels=list(found.counts)).tolist()
    theirs = classification_report(TRUE, SAID, labels=list(found.counts), output_dict=True, zero_division=0.0)
    for label, (name, scores) in zip(found.counts, found.scores(NAMES).items(), strict=True):
        wanted = theirs[str(label)]
        assert name == NAMES[label]  # type: ignore[index]
        assert list(scores.values()) == pytest.approx(list(wanted.values()), abs=1e-4)
        assert list(scores) == ["precision", "recall", "f1", "examples"]
    assert found.recall == {0: pytest.approx(1 / 3), 2: 1.0, 3: 0.0}, "of classes that occur"
    assert confused_pairs(found.confusion(NAMES)) == [
        ("sea", "<b>soil</b>", 1), ("sea", "class 4", 1), ("sun", "sea", 1)
    ]  # fmt: skip


def test_parts_add_up_to_the_whole() -> None:
    parts = [PerClass.of(TRUE[:2], SAID[:2]), PerClass(), PerClass.of(TRUE[2:], SAID[2:])]
    assert PerClass.sum(parts) == PerClass.of(TRUE, SAID)
    assert PerClass.sum([]) == PerClass()
    labels = [PerClass({1: ClassCounts(3, 2, 1)}), PerClass({0: ClassCounts(1), 1: ClassCounts(1, 1, 1)})]
    assert PerClass.sum(labels).counts == {0: ClassCounts(1, 0, 0), 1: ClassCounts(4, 3, 2)}
    assert PerClass.sum(labels).recall == {}, "an example may be of several classes"
    assert PerClass.sum(labels).confusion(NAMES) == {}


def test_of_many_classes_the_pairs_that_are_confused_most_are_told() -> None:
    """Each of 60 classes once right; class 7 is taken 5 times for 8, and every class once for the next one."""
    labels = list(range(MOST + 10))
    names = [f"c{label:02}" for label in labels]
    others = [(label + 1) % len(labels) for label in labels]
    found = PerClass.of([*labels, *labels, *[7] * 4], [*labels, *others, *[8] * 4])
    told = found.confusion(names)
    assert told.keys() == {"most_confused"}
    assert len(told["most_confused"]) == MOST_PAIRS
    assert told["most_confused"][:2] == [["c07", "c08", 5], ["c00", "c01", 1]]
    assert confused_pairs(told)[0] == ("c07", "c08", 5)
    assert confused_pairs({}) == []


def test_names_can_be_labels_and_nothing_is_recognised_of_nothing() -> None:
    assert list(PerClass.of(["b", "a"], ["a", "ccc"]).counts) == ["a", "b", "ccc"]
    nothing = ClassCounts(0, 0, 0)
    assert (nothing.precision, nothing.recall, nothing.f1) == (0.0, 0.0, 0.0)
    rng = np.random.default_rng(0)
    true, said = rng.integers(0, 9, 200).tolist(), rng.integers(0, 9, 200).tolist()
    of_all = PerClass.of(true, said)
    assert sum(counts.right for counts in of_all.counts.values()) == sum(np.equal(true, said))
