"""budget_value against every row that there is, and what it remembers."""

from dataclasses import replace
from itertools import product

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from factories import Lent, MemoryLaw, context_of, fleet_of
from hypothesis import given, settings

from hellora.core.types import Budget
from hellora.methods.allocators.budget_value import BudgetValue, best_ranks

LAYERS, RANK = 4, 2


@settings(derandomize=True, deadline=None, database=None, max_examples=60)
@given(st.integers(0, 9999))
def test_no_row_that_fits_is_worth_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    law = MemoryLaw(*rng.uniform(0, 2, 3), limits={0: rng.uniform(0, 12)})
    budget = Budget(layers=int(rng.integers(1, LAYERS + 1))) if seed % 3 == 0 else Budget()
    (client,) = (replace(client, id=0) for client in fleet_of(budget))
    context = replace(context_of((client,), num_layers=LAYERS, max_rank=RANK), planner=law)
    values = rng.uniform(0.1, 1, LAYERS)
    found = best_ranks(context, client, values)
    rows = [np.array(row) for row in product(range(RANK + 1), repeat=LAYERS)]
    allowed = [row for row in rows if law.fits(client, row) and np.count_nonzero(row) <= budget.capacity(LAYERS)]
    assert law.fits(client, found)
    assert values @ found == pytest.approx(max(values @ row for row in allowed))


def test_of_equal_values_the_deepest_layers_are_taken() -> None:
    (client,) = (replace(client, id=0) for client in fleet_of(Budget()))
    law = MemoryLaw(path=1, layer=0, component=0, limits={0: 2})
    context = replace(context_of((client,), num_layers=LAYERS, max_rank=RANK), planner=law)
    allocation, state = BudgetValue().allocate(context)
    assert allocation.ranks.tolist() == [[0, 0, 2, 2]]
    assert not state


def test_fisher_values_are_measured_when_it_is_time() -> None:
    (client,) = fleet_of(Budget(layers=1))
    law = MemoryLaw(path=0, layer=0, component=0, limits={})
    scores = np.array([0.1, 3.0, 0.2, 0.3])
    context = context_of((client,), num_layers=LAYERS, max_rank=RANK)
    first = replace(context, planner=law, rounds=20, lent=Lent(lambda: scores))
    allocation, state = BudgetValue(value="fisher").allocate(first)
    assert allocation.ranks.tolist() == [[0, 2, 0, 0]]
    later = replace(first, round=1, state=state, lent=Lent(lambda: scores[::-1].copy()))
    assert BudgetValue(value="fisher").allocate(later)[0].ranks.tolist() == [[0, 2, 0, 0]], "refreshed every 2 rounds"
    due = replace(later, round=2)
    assert BudgetValue(value="fisher").allocate(due)[0].ranks.tolist() == [[0, 0, 2, 0]]
    unknown = replace(first, lent=Lent(lambda: np.full(LAYERS, np.nan)))
    assert BudgetValue(value="fisher").allocate(unknown)[0].ranks.tolist() == [[0, 0, 0, 2]], "all worth the same"
    assert torch.equal(state["refreshed"], torch.tensor(0))
