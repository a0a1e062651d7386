"""context_pad, zero_pad and sparsity_weighted: against a slow reference, and by hand."""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from factories import aggregated, random_adapter, task_for, tiny_spec, update_of
from hypothesis import given, settings
from hypothesis import strategies as st

from hellora.core.exchange import ClientUpdate
from hellora.core.types import Adapter, AdapterSpec, LoraPair, ModuleSpec
from hellora.methods.aggregators.context_pad import ContextPad, Padding, context_of
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.aggregators.sparsity_weighted import SparsityWeighted
from hellora.methods.aggregators.zero_pad import ZeroPad
from hellora.methods.strategies import Aggregator, Answers

Floats = npt.NDArray[np.float64]
SPEC = tiny_spec()
GLOBAL = random_adapter(SPEC, seed=1000)
PADDINGS = get_args(Padding)


def mixed_answers(seed: int) -> Answers:
    """Prefixes, scattered components, an untrained layer, a component that nobody has, unequal examples."""
    rng = np.random.default_rng(seed)
    rows = rng.random((5, SPEC.num_layers, SPEC.max_rank)) < 0.6
    rows[0] = [[True], [False], [True]]  # whole layers
    rows[1] = np.arange(SPEC.max_rank) < 2  # a prefix
    rows[2:, 1] = False
    rows[0, 2, 3] = rows[1, 2, 3] = rows[2:, 2, 3] = False
    tasks = [task_for(client, GLOBAL, row) for client, row in enumerate(rows)]
    return [(t, update_of(t, random_adapter(SPEC, t.client), SPEC, int(rng.integers(1, 99)))) for t in tasks]


# ------------------------------------------------------------------------------------------------------------- padding


def product(pair: LoraPair) -> Floats:
    return pair.B.double().numpy() @ pair.A.double().numpy()


@pytest.mark.parametrize("padding", PADDINGS)
def test_the_change_of_a_clients_product_is_that_of_the_table(padding: Padding) -> None:
    @settings(derandomize=True, deadline=None, database=None, max_examples=25)
    @given(st.integers(1, 5), st.integers(0, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 999))
    def law(rank: int, k: int, d_in: int, d_out: int, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        pair = LoraPair(torch.randn(rank, d_in, generator=rng), torch.randn(d_out, rank, generator=rng), 2.0)
        A, B = pair.A.double().numpy(), pair.B.double().numpy()
        change: dict[str, Floats] = {
            "zero": np.zeros((d_out, d_in)),
            "mean": np.full((d_out, d_in), k * A.mean() * B.mean()),
            "linear": k * np.outer(B.mean(axis=1), A.mean(axis=0)),
            "adjacent": k * np.outer(B[:, -1], A[-1]),
            "pad_a_only": np.zeros((d_out, d_in)),
        }
        context = context_of(pair, k, padding)
        padded = LoraPair(torch.cat([pair.A, context.A]), torch.cat([pair.B, context.B], dim=1), pair.scale)
        assert padded.rank == rank + k
        np.testing.assert_allclose(product(padded) - product(pair), change[padding], atol=1e-12)
        if padding == "pad_a_only":
            np.testing.assert_allclose(context.A.numpy(), np.broadcast_to(A.mean(axis=0), (k, d_in)), atol=1e-12)

    law()


# ----------------------------------------------------------------------------------------------------------- the means


def padded(values: Floats, rows: npt.NDArray[np.bool_], padding: Padding, factor: str) -> Floats:
    """A client's factor with its components as rows, (max_rank, d), padded one component after the other."""
    filler = {
        "zero": np.zeros(values.shape[1]),
        "mean": np.full(values.shape[1], values.mean()),
        "linear": values.mean(axis=0),
        "adjacent": values[-1],
        "pad_a_only": values.mean(axis=0) if factor == "A" else np.zeros(values.shape[1]),
    }[padding]
    own = iter(values)
    return np.stack([next(own) if has else filler for has in rows])


def reference(
    answers: Answers, padding: Padding, gamma: float, weight: Callable[[ClientUpdate, LoraPair], float]
) -> dict[str, Floats]:
    """Component by component, in float64."""
    result = {name: tensor.double().numpy().copy() for name, tensor in GLOBAL.tensors().items()}
    for module in SPEC.modules:
        held = [(t.trained[module.layer], u) for t, u in answers if module.name in u.adapter.pairs]
        for factor in "AB":
            old = result[f"{module.name}.lora_{factor}"]
            by_component = old if factor == "A" else old.T
            for q in range(SPEC.max_rank):
                if not any(rows[q] for rows, _ in held):
                    continue
                total, weights = np.zeros(by_component.shape[1]), 0.0
                for rows, update in held:
                    pair = update.adapter.pairs[module.name]
                    values = pair.A if factor == "A" else pair.B.T
                    w = weight(update, pair) * (1 if rows[q] else gamma)
                    total += w * padded(values.double().numpy(), rows, padding, factor)[q]
                    weights += w
                by_component[q] = total / weights
    for name in GLOBAL.head:
        terms = [u.num_examples * u.adapter.head[name].double().numpy() for _, u in answers]
        result[f"head.{name}"] = np.sum(terms, axis=0) / sum(u.num_examples for _, u in answers)
    return result


def assert_equals(aggregator: Aggregator, answers: Answers, expected: dict[str, Floats]) -> None:
    got = aggregated(aggregator, GLOBAL, answers, SPEC, 0).tensors()
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(got[name].numpy(), values, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("kappa", "gamma"), [(1.0, 1.0), (0.0, 1.0), (2.0, 0.3), (0.5, 0.0)])
@pytest.mark.parametrize("padding", PADDINGS)
def test_context_pad_against_the_reference(padding: Padding, kappa: float, gamma: float) -> None:
    for seed in range(3):
        answers = mixed_answers(seed)
        expected = reference(answers, padding, gamma, lambda u, pair: u.num_examples * pair.rank**kappa)
        assert_equals(ContextPad(padding, kappa, gamma), answers, expected)


def test_zero_pad_against_the_reference() -> None:
    for seed in range(3):
        answers = mixed_answers(seed)
        assert_equals(ZeroPad(), answers, reference(answers, "zero", 1.0, lambda u, _: u.num_examples))


def test_sparsity_weighted_against_the_reference() -> None:
    for seed in range(3):
        answers = mixed_answers(seed)
        expected = reference(answers, "zero", 1.0, lambda _, pair: float(np.linalg.norm(product(pair))))
        assert_equals(SparsityWeighted(), answers, expected)


@pytest.mark.parametrize("padding", PADDINGS)
def test_without_weight_on_padding_and_ranks_it_is_the_participant_mean(padding: Padding) -> None:
    answers = mixed_answers(3)
    mean = aggregated(ParticipantMean(), GLOBAL, answers, SPEC, 0).tensors()
    assert_equals(ContextPad(padding, 0.0, 0.0), answers, {name: t.double().numpy() for name, t in mean.items()})


# ------------------------------------------------------------------------------------------------------------- by hand

ONE = AdapterSpec((ModuleSpec("m", 0, d_in=1, d_out=1), ModuleSpec("n", 1, d_in=1, d_out=1)), ("0", "1"), 3, 1.0)


def pair_of(A: list[float], B: list[float]) -> LoraPair:
    return LoraPair(torch.tensor([[float(a)] for a in A]), torch.tensor([B], dtype=torch.float32), 1.0)


def by_hand(aggregator: Aggregator, pairs: list[LoraPair], examples: list[int]) -> list[list[float]]:
    """A and B of module m after clients with these prefixes of it; a last client trains module n alone."""
    start = Adapter({"m": pair_of([7, 7, 7], [7, 7, 7]), "n": pair_of([7, 7, 7], [7, 7, 7])})
    ranks = [[pair.rank, 0] for pair in pairs] + [[0, 3]]
    tasks = [task_for(i, start, np.array(rows)[:, None] > np.arange(3)) for i, rows in enumerate(ranks)]
    adapters = [Adapter({"m": pair}) for pair in pairs] + [Adapter({"n": start.pairs["n"]})]
    updates = [ClientUpdate(0, i, n, a) for i, (n, a) in enumerate(zip([*examples, 1000], adapters, strict=True))]
    result = aggregated(aggregator, start, list(zip(tasks, updates, strict=True)), ONE, 0).pairs["m"]
    return [result.A.flatten().tolist(), result.B.flatten().tolist()]


def test_zero_pad_by_hand() -> None:
    """1 and 3 examples: component 1, which only the second has, keeps 3/4; component 2, which nobody has, stays."""
    clients = [pair_of([2], [20]), pair_of([6, 4], [60, 40])]
    assert by_hand(ZeroPad(), clients, [1, 3]) == [[5, 3, 7], [50, 30, 7]]


def test_context_pad_by_hand() -> None:
    """Weights 1 · 1 and 3 · 2: the mean row of the first client is 2, and it counts in A alone."""
    clients = [pair_of([2], [7]), pair_of([9, 16], [14, 21])]
    assert by_hand(ContextPad(), clients, [1, 3]) == [[8, 14, 7], [13, 18, 7]]
    clients = [pair_of([2], [7]), pair_of([9, 16], [14, 20])]
    a, b = by_hand(ContextPad(gamma=0.5, kappa=0.0), clients, [2, 3])
    assert a == pytest.approx([6.2, 12.5, 7])
    assert b == pytest.approx([11.2, 15, 7])


def test_sparsity_weighted_by_hand() -> None:
    """‖ΔW‖ is 2 · 5 = 10 and |3 · 8 + 2 · 3| = 30: weights 1/4 and 3/4, whatever the examples."""
    clients = [pair_of([2], [5]), pair_of([3, 2], [8, 3])]
    assert by_hand(SparsityWeighted(), clients, [500, 1]) == [[2.75, 1.5, 7], [7.25, 2.25, 7]]


def test_updates_that_are_all_zero_weigh_the_same() -> None:
    clients = [pair_of([2], [0]), pair_of([4, 8], [0, 0])]
    assert by_hand(SparsityWeighted(), clients, [500, 1]) == [[3, 4, 7], [0, 0, 7]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"padding": "ones"}, "padding must be one of pad_a_only, zero, mean, linear, adjacent, not 'ones'"),
        ({"kappa": -1.0}, "kappa and gamma must not be negative"),
        ({"gamma": float("nan")}, "kappa and gamma must not be negative"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContextPad(**wrong)
