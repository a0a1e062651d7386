"""A head whose rows are weighed by the examples of their class."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import local_of, random_adapter, round_of, task_for, tiny_spec, update_of

from hellora.core.errors import InputError
from hellora.experiments.config import check
from hellora.methods.contributions import head_by_class
from hellora.methods.local_training.class_counts import ClassCounts
from hellora.methods.strategies import Answers

SPEC = tiny_spec()
GLOBAL = random_adapter(SPEC, seed=1000)
CLASSES = len(GLOBAL.head["bias"])
ALL = np.ones((SPEC.num_layers, SPEC.max_rank), dtype=bool)


def answers_of(counts: list[list[int]]) -> Answers:
    found = []
    for client, row in enumerate(counts):
        task = task_for(client, GLOBAL, ALL)
        update = update_of(task, random_adapter(SPEC, client), SPEC, sum(row))
        found.append((task, replace(update, report={"class_counts/counts": torch.tensor(row)})))
    return found


def test_each_row_is_the_mean_over_those_who_have_its_class() -> None:
    counts = [[0] * CLASSES for _ in range(3)]
    counts[0][0], counts[1][0], counts[1][1], counts[2][1] = 3, 1, 5, 15
    answers = answers_of(counts)
    heads = [update.adapter.head for _, update in answers]
    found = head_by_class(round_of(GLOBAL, SPEC), GLOBAL, list(reversed(answers))).head
    for name, old in GLOBAL.head.items():
        torch.testing.assert_close(found[name][0], (3 * heads[0][name][0] + heads[1][name][0]) / 4)
        torch.testing.assert_close(found[name][1], (5 * heads[1][name][1] + 15 * heads[2][name][1]) / 20)
        assert torch.equal(found[name][2:], old[2:])  # nobody has these


def test_one_client_that_claims_much_is_bounded() -> None:
    counts = [[1] + [0] * (CLASSES - 1) for _ in range(3)]
    counts[2][0] = 10**9
    answers = answers_of(counts)
    context = replace(round_of(GLOBAL, SPEC), max_weight=2.0)
    found = head_by_class(context, GLOBAL, answers).head["bias"][0]
    heads = [update.adapter.head["bias"][0] for _, update in answers]
    torch.testing.assert_close(found, (heads[0] + heads[1] + 2 * heads[2]) / 4)


def test_nobody_has_more_of_a_class_than_examples() -> None:
    answers = answers_of([[2] + [0] * (CLASSES - 1)] * 2)
    task, update = answers[1]
    lied = {"class_counts/counts": torch.tensor([2**40] + [0] * (CLASSES - 1))}
    spoilt = [answers[0], (task, replace(update, report=lied))]
    found, wanted = (head_by_class(round_of(GLOBAL, SPEC), GLOBAL, each).head["bias"] for each in (spoilt, answers))
    assert torch.equal(found, wanted)


def test_the_rule_reports_the_examples_of_each_class() -> None:
    task = task_for(0, GLOBAL, ALL)
    local = local_of(task, SPEC, labels=torch.tensor([0, 1, 1, -100]))
    assert ClassCounts().declares(local.shapes).report["counts"].shape == (CLASSES,)
    report, kept = ClassCounts().end(local, None)
    assert report["counts"].tolist() == [1, 2] + [0] * (CLASSES - 2)
    assert kept == {}


def test_a_head_of_two_layers_is_refused() -> None:
    task = task_for(0, replace(GLOBAL, head={"a.weight": torch.ones(2, 3), "b.weight": torch.ones(2, 2)}), ALL)
    local = local_of(task, SPEC, labels=torch.zeros(1, dtype=torch.long))
    with pytest.raises(InputError, match="one linear layer"):
        ClassCounts().declares(local.shapes)


@pytest.mark.parametrize("aggregator", ["clipped_mean", "coordinate_median", "trimmed_mean"])
def test_a_robust_aggregator_keeps_its_head(aggregator: str) -> None:
    """A mean by class in its place would let one client move the head as far as it likes."""
    method = {"aggregator": aggregator, "head_mean": "by_class"}
    with pytest.raises(InputError, match=f"'{aggregator}' and method.head_mean = 'by_class' both aggregate the head"):
        check("robust", {"method": method})
    assert check("robust", {"method": {**method, "head_mean": "by_client"}})
