"""What is a client's own: put in its place at the client, it makes the task that a server makes which keeps it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from factories import bits, dispatched, random_adapter, task_for, tiny_spec, update_of

from hellora.core.exchange import Factors
from hellora.core.types import Adapter, LoraPair
from hellora.methods.dispatchers.bypass import Bypass
from hellora.methods.dispatchers.truncate import Truncate
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.sharing import crosses, delta_norm, private_part, with_own, with_private, with_trained
from hellora.methods.strategies import Dispatcher

SPEC = tiny_spec()
GLOBAL, OWN, VALUES = (random_adapter(SPEC, seed) for seed in range(3))
ROWS = {
    "components": np.array([[True, False, True, False], [True] * 4, [False] * 4]),
    "layers": np.array([[False] * 4, [True] * 4, [True] * 4]),
    "everything": np.ones((3, 4), dtype=bool),
}
every_dispatcher = pytest.mark.parametrize("dispatcher", [Whole(), Truncate(), Bypass()], ids=repr)
every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


def without_own(adapter: Adapter, shares: Factors) -> Adapter:
    """As it arrives at a client: with an empty factor in place of its own."""
    pairs = {
        name: LoraPair(
            torch.zeros(pair.rank, 0) if shares == "B" else pair.A,
            torch.zeros(0, pair.rank) if shares == "A" else pair.B,
            pair.scale,
        )
        for name, pair in adapter.pairs.items()
    }
    return replace(adapter, pairs=pairs)


@every_dispatcher
@every_row
@pytest.mark.parametrize(("head", "shares"), [("local", "A"), ("local", "B"), ("aggregate", "A"), ("local", "both")])
def test_the_client_makes_the_task_that_a_simulation_sends(
    dispatcher: Dispatcher, row: Any, head: Any, shares: Factors
) -> None:
    task = replace(task_for(1, GLOBAL, row), head=head, shares=shares)
    own = {name: tensor for name, tensor in OWN.tensors().items() if not crosses(name, task)}
    simulated = dispatched(dispatcher, with_private(GLOBAL, own), row, SPEC)
    arrived = without_own(dispatched(dispatcher, GLOBAL, row, SPEC), shares)
    filled = with_own(replace(task, adapter=arrived), with_private(random_adapter(SPEC, 9), own), SPEC)
    assert bits(filled.adapter.tensors()) == bits(simulated.tensors())


@every_dispatcher
@every_row
def test_what_a_client_has_after_a_task(dispatcher: Dispatcher, row: Any) -> None:
    """What it trained where it trained, and what it was sent elsewhere."""
    cut = dispatcher.sends(row, SPEC).cut
    task = task_for(1, dispatched(dispatcher, GLOBAL, row, SPEC), row, cut)
    found = with_trained(task, update_of(task, VALUES, SPEC).adapter, SPEC)
    assert found.pairs.keys() == task.adapter.pairs.keys()
    assert bits(found.head) == bits(VALUES.head)
    for module in SPEC.modules:
        if module.name not in found.pairs:
            continue
        rows = torch.tensor(row[module.layer])
        expected = {}
        for name, (old, new) in {
            "A": (GLOBAL.pairs[module.name].A, VALUES.pairs[module.name].A),
            "B": (GLOBAL.pairs[module.name].B.T, VALUES.pairs[module.name].B.T),
        }.items():
            mixed = torch.stack([new[i] if rows[i] else old[i] for i in range(4)])
            expected[name] = mixed[rows] if cut and rows.any() else mixed
        assert torch.equal(found.pairs[module.name].A, expected["A"])
        assert torch.equal(found.pairs[module.name].B.T, expected["B"])


def test_a_client_keeps_its_factor_with_all_components() -> None:
    row = ROWS["components"]
    task = replace(task_for(1, GLOBAL, row), head="local", shares="A")
    kept = private_part(task, update_of(task, VALUES, SPEC), OWN, SPEC)
    assert kept.keys() == {"head.weight", "head.bias"} | {f"{m.name}.lora_B" for m in SPEC.modules if m.layer < 2}
    assert torch.equal(kept["block.0.query.lora_B"][:, [0, 2]], VALUES.pairs["block.0.query"].B[:, [0, 2]])
    assert torch.equal(kept["block.0.query.lora_B"][:, [1, 3]], OWN.pairs["block.0.query"].B[:, [1, 3]])


def test_the_norm_of_an_answer_is_of_what_is_shared() -> None:
    """B of a client of a network stands as the server sent it; in a simulation it moved, and both are judged alike."""
    row = ROWS["everything"]
    task = replace(task_for(1, GLOBAL, row), head="local", shares="A")
    answer = update_of(task, VALUES, SPEC).adapter
    stayed = Adapter({n: replace(p, B=GLOBAL.pairs[n].B) for n, p in answer.pairs.items()}, GLOBAL.head)
    by_hand = sum(float((VALUES.pairs[n].A - p.A).double().square().sum()) for n, p in GLOBAL.pairs.items()) ** 0.5
    assert delta_norm(answer, GLOBAL, task) == delta_norm(stayed, GLOBAL, task) == pytest.approx(by_hand)
    assert delta_norm(answer, GLOBAL) > delta_norm(answer, GLOBAL, task)
