"""How well each class is recognised: scikit-learn's numbers, by the classes' names."""

import pytest
from sklearn.metrics import classification_report, confusion_matrix

from hellora.client.evaluation import Evaluation
from hellora.client.per_class import MOST, by_name, confusion_of
from hellora.tasks import class_scores

TRUE, SAID = [0, 0, 0, 2, 2, 3], [0, 2, 4, 2, 2, 0]  # 1 is neither there nor said, 4 is only said


def test_scores_and_confusion_by_name() -> None:
    scores = class_scores(SAID, TRUE)
    found = by_name(scores, confusion_of(SAID, TRUE, scores), ("sea", "sky", "soil", "sun"))
    assert found["confusion"] == confusion_matrix(TRUE, SAID, labels=list(scores)).tolist()
    assert found["confusion"][0] == [1, 1, 0, 1]
    theirs = classification_report(TRUE, SAID, labels=list(scores), output_dict=True, zero_division=0.0)
    assert list(found["per_class"]) == ["sea", "soil", "sun", "class 4"], "the head has more room than there are names"
    for label, scored in zip(scores, found["per_class"].values(), strict=True):
        wanted = theirs[str(label)]
        assert scored["examples"] == wanted["support"]
        assert scored["f1"] == pytest.approx(wanted["f1-score"], abs=1e-4)
        assert scored["precision"] == pytest.approx(wanted["precision"], abs=1e-4)
        assert scored["recall"] == pytest.approx(wanted["recall"], abs=1e-4)
    assert Evaluation({}, scores).recall == {0: pytest.approx(1 / 3), 2: 1.0, 3: 0.0}, "of classes that occur"


def test_of_many_classes_there_is_no_matrix_and_of_none_nothing() -> None:
    many = list(range(MOST + 1))
    scores = class_scores(many, many)
    assert confusion_of(many, many, scores) == ()
    assert by_name(scores, (), [str(label) for label in many]).keys() == {"per_class"}
    assert by_name({}, (), ()) == {}
