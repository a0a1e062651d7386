"""The bytes of named tensors are part of a client's cost: by hand, and against what training holds."""

from dataclasses import replace
from pathlib import Path

import bases
import numpy as np
import pytest
import torch
from factories import method_of, tiny_spec

from hellora.budgets.cost import CostModel, Work
from hellora.client.rules import shapes_of
from hellora.client.train import train_client
from hellora.core.exchange import Policy, TrainSettings
from hellora.core.state import owned
from hellora.costing.calibration import calibrate
from hellora.costing.traced_rows import Shape
from hellora.costing.tracing import HeldBytes
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.everything import Everything
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.local import Shapes
from hellora.methods.local_training.fed_dyn import FedDyn
from hellora.methods.local_training.fed_prox import FedProx
from hellora.methods.local_training.prelort import Prelort
from hellora.methods.local_training.scaffold import Scaffold
from hellora.methods.strategies import LocalTraining

SGD = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0}
RANKS = np.array([2, 0])


def by_hand(*rules: LocalTraining) -> CostModel:
    """Two layers of two modules of 5 × 6 and 5 × 3 numbers, rank 4, and a head of 8 numbers."""
    spec, method = tiny_spec(2, 4), method_of(Everything(), Whole(), ParticipantMean(), local_training=rules)
    head = {"weight": (2, 3), "bias": (2,)}
    return CostModel(
        spec, {}, 0, 4, head_sizes=(8,), optimizer_numbers=0, block_operations=np.zeros(2), head_operations=0.0,
        hidden_bytes=0, tokens=1, declares=lambda row: method.declares(Shapes(spec, row, "both", head)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "up", "held"),
    [
        ((), 0, 0),
        ((Scaffold(),), 184, 184 + 184 + 2 * 640 + 184),
        ((FedProx(mu=0.1),), 0, 2 * 184),
        ((FedProx(mu=0.0),), 0, 0),
        ((FedDyn(alpha=0.1),), 0, 2 * 640 + 3 * 184),
        ((Scaffold(), FedProx(mu=0.1)), 184, 184 + 184 + 2 * 640 + 184 + 2 * 184),
    ],
    ids=["plain", "scaffold", "fed_prox", "fed_prox of 0", "fed_dyn", "both"],
)
def test_named_tensors_by_hand(rules: tuple[LocalTraining, ...], up: int, held: int) -> None:
    """The client trains 2 × (5 + 6) + 2 × (5 + 3) + 8 = 46 numbers, 184 bytes; with all components and both layers
    there are 2 × (4 × 11 + 4 × 8) + 8 = 160, 640 bytes, of which it has kept some and will keep others."""
    plain, cost = by_hand(), by_hand(*rules)
    assert plain.uplink(RANKS) == 184
    assert cost.uplink(RANKS) == 184 + up
    assert cost.standing_bytes(RANKS, Policy()) - plain.standing_bytes(RANKS, Policy()) == held


def test_losses_at_several_ranks_take_their_time_and_no_memory(tiny_bert: Path) -> None:
    costs = []
    for rules in ((), (Prelort((0.25, 0.5, 0.75)),)):
        method = method_of(Everything(), Whole(), ParticipantMean(), local_training=rules)
        costs.append(calibrate(bases.load(tiny_bert), bases.MEAN_POOLING, Shape(8, 6), method, TrainSettings()))
    (plain, cost), ranks, work = costs, np.array([0, 3, 0, 3]), Work(8, 8, epochs=2)
    assert cost.operations(ranks, Policy(), work) == 4 * plain.operations(ranks, Policy(), work) > 0
    assert cost.peak_bytes(ranks, Policy(), work) == plain.peak_bytes(ranks, Policy(), work)


@pytest.mark.parametrize(
    "rule", [Scaffold(), FedProx(mu=0.5), FedProx(mu=0.5, form="product"), FedDyn(alpha=0.5), Prelort()], ids=repr
)
@pytest.mark.parametrize("layers", [[1, 3], [0, 1, 2, 3]], ids=str)
def test_training_holds_what_was_counted(rule: LocalTraining, layers: list[int], tiny_bert: Path) -> None:
    """Never more, and not below 85 %, of what there is besides the weights."""
    base, rows, rank = bases.load(tiny_bert), bases.texts(8), 3
    lengths = bases.MEAN_POOLING.encode(base, rows).lengths
    assert lengths is not None
    method = method_of(Everything(), Whole(), ParticipantMean(), local_training=(rule,))
    shape, train = Shape(8, int(lengths.max())), TrainSettings(batch_size=8, **SGD)  # type: ignore[arg-type]
    cost = calibrate(bases.load(tiny_bert), bases.MEAN_POOLING, shape, method, train)
    task = bases.task_of(base, layers, **{"batch_size": 8, "steps": 3, **SGD})
    shapes = shapes_of(task, base)
    brief, kept = (
        {name: torch.zeros(spec.shape) for name, spec in specs.items()}
        for specs in (rule.declares(shapes).brief, rule.declares(shapes).kept)
    )
    task = replace(task, brief=owned(brief, rule.name), kept=owned(kept, rule.name))
    assert base.head is not None
    known = [*base.net.parameters(), *base.net.buffers(), *base.head.parameters()]
    received = [*task.adapter.tensors().values(), *task.brief.values(), *task.kept.values()]
    with HeldBytes([*known, *received]) as held:
        train_client(task, base, bases.MEAN_POOLING, rows, (rule,))
    found = held.peak + sum(tensor.nbytes for tensor in received)
    ranks = np.where(np.isin(np.arange(4), layers), rank, 0)
    predicted = cost.peak_bytes(ranks, Policy(), Work(8, 8)) - cost.weights_bytes
    assert 0.85 * predicted <= found <= predicted
