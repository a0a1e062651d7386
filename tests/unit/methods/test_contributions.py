"""What aggregators read from answers, by hand."""

from dataclasses import replace

import numpy as np
import torch
from factories import bits, dispatched, random_adapter, task_for, tiny_spec

from hellora.core.algebra import trained_part
from hellora.core.exchange import ClientUpdate
from hellora.core.types import Adapter, LoraPair
from hellora.methods.contributions import aggregated_head, contributions, mean_held, mean_moved
from hellora.methods.dispatchers.truncate import Truncate
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.strategies import Answers, Dispatcher

SPEC = tiny_spec(num_layers=2, max_rank=3)
BANK = random_adapter(SPEC, 0)
ROWS = np.array([[[1, 1, 0], [0, 0, 0]], [[1, 1, 1], [1, 0, 0]]], dtype=bool)  # (clients, layers, max_rank)
MODULE = SPEC.modules[0]


def answers_of(dispatcher: Dispatcher) -> Answers:
    """Client 0 with 1 example has two components of layer 0; client 1 with 3 has all of it, and one of layer 1."""
    tasks = [
        task_for(k, dispatched(dispatcher, BANK, row, SPEC), row, dispatcher.sends(row, SPEC).cut)
        for k, row in enumerate(ROWS)
    ]
    answers = []
    for task in tasks:
        back = random_adapter_for(task.adapter)
        part = replace(trained_part(back, task.trained, SPEC, task.cut), head=back.head)
        answers.append((task, ClientUpdate(0, task.client, 1 + 2 * task.client, part)))
    return answers


def random_adapter_for(sent: Adapter) -> Adapter:
    return replace(sent, pairs={n: LoraPair(p.A + 1, p.B - 1, p.scale) for n, p in sent.pairs.items()})


def test_what_was_sent_what_came_back_and_what_stayed() -> None:
    for dispatcher, rest in ((Whole(), 1), (Truncate(), 0)):
        first, second = contributions(MODULE, answers_of(dispatcher)[::-1], "samples")
        assert (first.share, second.share) == (0.25, 0.75)
        assert first.rows.tolist() == [True, True, False]
        global_pair = BANK.pairs[MODULE.name]
        assert bits({0: first.before.A, 1: first.before.B}) == bits({0: global_pair.A[:2], 1: global_pair.B[:, :2]})
        assert bits({0: first.after.A, 1: first.after.B}) == bits(
            {0: global_pair.A[:2] + 1, 1: global_pair.B[:, :2] - 1}
        )
        assert (first.rest.rank, second.rest.rank) == (rest, 0)
    (only,) = contributions(SPEC.modules[-1], answers_of(Whole()), "samples")
    assert (only.share, only.after.rank) == (1.0, 1)
    assert [part.share for part in contributions(MODULE, answers_of(Whole()), "uniform")] == [0.5, 0.5]


def test_the_banks_own_components_are_stacked_once() -> None:
    """One term for the global adapter and one per client, so that the work does not double with what was dispatched."""
    global_pair = BANK.pairs[MODULE.name]
    for dispatcher in (Whole(), Truncate()):
        parts = contributions(MODULE, answers_of(dispatcher), "samples")
        for terms in (mean_moved(global_pair, parts), mean_held(global_pair, parts)):
            assert [pair.rank for _, pair in terms] == [3, 2, 3]
    (_, left), *_ = mean_moved(global_pair, parts)
    torch.testing.assert_close(left.B, global_pair.B.double() * torch.tensor([0.0, 0.0, 0.25]))
    (_, held), *_ = mean_held(global_pair, contributions(MODULE, answers_of(Whole()), "samples"))
    torch.testing.assert_close(held.B, global_pair.B.double() * torch.tensor([0.0, 0.0, 0.25]))


def test_the_head_is_the_mean_over_all_answers() -> None:
    answers = [
        (task, replace(update, adapter=replace(update.adapter, head={"bias": torch.tensor([value])})))
        for (task, update), value in zip(answers_of(Whole()), (8.0, 4.0), strict=True)
    ]
    assert aggregated_head(answers, "samples")["bias"].tolist() == [5.0]
    assert aggregated_head(answers, "uniform")["bias"].tolist() == [6.0]
