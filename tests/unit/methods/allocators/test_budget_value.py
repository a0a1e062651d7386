"""budget_value against every row that there is, and what it remembers."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from factories import MemoryLaw, context_of, fleet_of

from hellora.core.types import Budget
from hellora.methods.allocators.budget_value import BudgetValue, best_ranks

LAYERS, RANK = 4, 2


@pytest.mark.parametrize("seed", range(60))
def test_no_row_that_fits_is_worth_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    law = MemoryLaw(*rng.uniform(0, 2, 3), limits={0: rng.uniform(0, 12)})
    budget = Budget(layers=int(rng.integers(1, LAYERS + 1))) if seed % 3 == 0 else Budget()
    (client,) = (replace(client, id=0) for client in fleet_of(budget))
    view = replace(context_of((client,), num_layers=LAYERS, max_rank=RANK), planner=law)
    values = rng.uniform(0.1, 1, LAYERS)
    found = best_ranks(view, client, values)
    rows = [np.array(row) for row in product(range(RANK + 1), repeat=LAYERS)]
    allowed = [row for row in rows if law.fits(client, row) and np.count_nonzero(row) <= budget.capacity(LAYERS)]
    assert law.fits(client, found)
    assert values @ found == pytest.approx(max(values @ row for row in allowed))


def test_of_equal_values_the_deepest_layers_are_taken() -> None:
    (client,) = (replace(client, id=0) for client in fleet_of(Budget()))
    law = MemoryLaw(path=1, layer=0, component=0, limits={0: 2})
    view = replace(context_of((client,), num_layers=LAYERS, max_rank=RANK), planner=law)
    allocation, memory = BudgetValue().allocate(view)
    assert allocation.ranks.tolist() == [[0, 0, 2, 2]]
    assert not memory


def test_fisher_values_are_measured_when_it_is_time() -> None:
    (client,) = fleet_of(Budget(layers=1))
    law = MemoryLaw(path=0, layer=0, component=0, limits={})
    scores = np.array([0.1, 3.0, 0.2, 0.3])
    view = context_of((client,), num_layers=LAYERS, max_rank=RANK)
    first = replace(view, planner=law, rounds=20, layer_scores=lambda: scores)
    allocation, memory = BudgetValue(value="fisher").allocate(first)
    assert allocation.ranks.tolist() == [[0, 2, 0, 0]]
    later = replace(first, round=1, memory=memory, layer_scores=lambda: scores[::-1].copy())
    assert BudgetValue(value="fisher").allocate(later)[0].ranks.tolist() == [[0, 2, 0, 0]], "refreshed every 2 rounds"
    due = replace(later, round=2)
    assert BudgetValue(value="fisher").allocate(due)[0].ranks.tolist() == [[0, 0, 2, 0]]
    unknown = replace(first, layer_scores=lambda: np.full(LAYERS, np.nan))
    assert BudgetValue(value="fisher").allocate(unknown)[0].ranks.tolist() == [[0, 0, 0, 2]], "all worth the same"
    assert torch.equal(memory["refreshed"], torch.tensor(0))
