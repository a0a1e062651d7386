"""What clients tell of models of their own: sums that can be, and their means."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from factories import gathered, random_adapter, task_for, tiny_spec, update_of

from hellora.core.exchange import ClientUpdate
from hellora.core.held_out import HeldOut
from hellora.core.per_class import MOST, ClassCounts, PerClass
from hellora.core.types import Adapter, ClientProfile
from hellora.server.answers import problem_with

SPEC = tiny_spec()
TASK = task_for(1, random_adapter(SPEC, 0), np.ones((3, 4), dtype=bool))
SUMS = {"held_out_examples": 4, "held_out_right": 3, "held_out_loss": 2.0}


def of_class(**counts: Any) -> dict[str, Any]:
    """What is told of one class, all 4 of which are of it, and 3 right."""
    return {f"held_out_class:0:{name}": n for name, n in {"examples": 4, "said": 4, "right": 3, **counts}.items()}


def outcome(**changes: Any) -> str:
    """Why an update of 16 examples with these sums does not count; "" where it does."""
    metrics = {name: value for name, value in {**SUMS, **changes}.items() if value is not None}
    update: ClientUpdate = replace(update_of(TASK, random_adapter(SPEC, 1), SPEC, 16), metrics={"loss": 1.0, **metrics})
    found = gathered([TASK], [update], SPEC, [ClientProfile(1, 16)])
    return "" if found.answers else found.failures[0].reason


def test_sums_come_back_and_their_means_are_the_metrics() -> None:
    told = HeldOut(4, 2.0, 3)
    assert told.as_metrics() == SUMS
    assert HeldOut.of({"loss": 1.0, **SUMS}) == told
    assert told.means == {"accuracy": 0.75, "loss": 0.5}
    assert HeldOut(4, 2.0).means == {"loss": 0.5}, "a language model"
    assert HeldOut.of({"loss": 1.0, "examples": 4}) is None
    by_class = HeldOut(4, 2.0, 3, {"0": ClassCounts(3, 4, 3), "a:b": ClassCounts(1)})
    assert HeldOut.of(by_class.as_metrics()) == by_class
    assert not outcome(**by_class.as_metrics())
    assert not outcome(held_out_right=None, **of_class(examples=9)), "a text may have several labels"
    many = PerClass.of(range(MOST + 1), range(MOST + 1))
    assert HeldOut.classes_of(many) == HeldOut.classes_of(PerClass.of(["x" * 99], ["x" * 99])) == {}
    assert not outcome()
    assert not outcome(held_out_right=None)
    assert not outcome(held_out_examples=None, held_out_right=None, held_out_loss=None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"held_out_examples": 0}, "measured its model on 0 examples"),
        ({"held_out_examples": 2.5}, "measured its model on 2.5 examples"),
        ({"held_out_examples": None}, "measured its model on 0 examples"),
        ({"held_out_examples": 17}, "measured its model on 17 examples, but it trains on 16"),
        ({"held_out_right": 5}, "has 5 of 4 held-out examples right"),
        ({"held_out_right": -1}, "has -1 of 4 held-out examples right"),
        ({"held_out_right": 1.5}, "has 1.5 of 4 held-out examples right"),
        ({"held_out_loss": math.nan}, "its loss on held-out examples is nan"),
        ({"held_out_loss": None}, "its loss on held-out examples is nan"),
        ({"held_out_loss": math.inf}, "its metric 'held_out_loss' is inf"),
        (of_class(right=3, examples=2), "has 3 of 2 held-out examples of class 0 right"),
        (of_class(right=3, said=2), "has 3 of 4 held-out examples of class 0 right"),
        (of_class(said=1e9), "has 3 of 4 held-out examples of class 0 right"),
        (of_class(right=-1), "has -1 of 4 held-out examples of class 0 right"),
        (of_class(examples=5), "counts 5 held-out examples by class, of 4"),
        (of_class(right=2), "counts 4 held-out examples by class, of 4"),
    ],
)
def test_sums_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    assert outcome(**changes) == words


@pytest.mark.parametrize(("shared", "words"), [(0.0, ""), (0.1, "its delta has a norm of ")])
def test_a_norm_is_of_what_is_shared(shared: float, words: str) -> None:
    """A simulation's server sees what is a client's own, which may go as far as it likes."""
    task = replace(TASK, head="local", shares="A")
    pairs = {n: replace(p, A=p.A + shared, B=p.B + 100) for n, p in TASK.adapter.pairs.items()}
    update = update_of(task, Adapter(pairs, {n: t + 100 for n, t in TASK.adapter.head.items()}), SPEC)
    found = problem_with(update, task, SPEC, max_norm=0.01)
    assert found is None if not words else str(found).startswith(words)
