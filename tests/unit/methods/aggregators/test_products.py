"""The aggregators that work on products, against dense matrices in float64.

A situation has clients of mixed rows, ranks, scales and sizes, layers that some or all of them leave out, any
dispatcher, and a global adapter that may be new, of low rank, or full.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import torch
from factories import aggregated, bits, dispatched, effective, random_adapter, task_for, tiny_spec
from hypothesis import given, settings

from hellora.core.algebra import new_adapter, trained_part
from hellora.core.exchange import ClientTask, ClientUpdate
from hellora.core.seeds import seed_for
from hellora.core.types import Adapter, AdapterSpec, LoraPair, Mask, ModuleSpec
from hellora.experiments import registry
from hellora.methods.aggregators.fed_svd import FedSvd
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.aggregators.product_svd import ProductSvd
from hellora.methods.aggregators.product_update import ProductUpdate
from hellora.methods.aggregators.rank_partition import RankPartition
from hellora.methods.aggregators.refine import Refine
from hellora.methods.aggregators.residual import Residual
from hellora.methods.aggregators.stack import Stack
from hellora.methods.demands import TRAINS_ONLY_B
from hellora.methods.dispatchers.svd import Svd
from hellora.methods.dispatchers.truncate import Truncate
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.strategies import Aggregator, Answers, Dispatcher
from hellora.server.rounds import with_still_factors

Dense = npt.NDArray[np.float64]
laws = settings(derandomize=True, deadline=None, database=None, max_examples=25)
BY_PRODUCT: tuple[Dispatcher, ...] = (Whole(), Truncate(), Svd())
BY_COMPONENT: tuple[Dispatcher, ...] = (Whole(), Truncate())


@dataclass(frozen=True)
class Situation:
    spec: AdapterSpec
    global_pair: Adapter
    answers: Answers
    dispatcher: Dispatcher

    def shares(self, name: str) -> dict[int, float]:
        """p_k by client, over those that trained the module."""
        sizes = {u.client: u.num_examples for _, u in self.answers if name in u.adapter.pairs}
        return {client: size / sum(sizes.values()) for client, size in sizes.items()}

    def target(self, form: str) -> dict[str, Dense]:
        """By module, pair and residual: Σ p ΔW_k (value), or ΔW + Σ p (s_k B_k A_k − D_k) (update)."""
        result = effective(self.global_pair)
        for module in self.spec.modules:
            shares = self.shares(module.name)
            if not shares:
                continue
            global_pair = product(self.global_pair.pairs[module.name])
            total = np.zeros_like(global_pair) if form == "value" else global_pair.copy()
            for task, update in self.answers:
                if update.client in shares:
                    after = product(update.adapter.pairs[module.name])
                    before = product(trained_part(task.adapter, task.trained, self.spec, task.cut).pairs[module.name])
                    rest = product(task.adapter.pairs[module.name]) - before
                    total += shares[update.client] * (after + rest if form == "value" else after - before)
            result[module.name] += total - global_pair
        return result

    def size(self, name: str) -> float:
        """What 1e-5 is relative to: the sum of the norms of all that is added up."""
        sizes = [effective(self.global_pair)[name], product(self.global_pair.pairs[name])]
        sizes += [product(u.adapter.pairs[name]) for _, u in self.answers if name in u.adapter.pairs]
        return 1e-3 + sum(float(np.linalg.norm(m)) for m in sizes)


def task_sent(dispatcher: Dispatcher, client: int, adapter: Adapter, row: Mask, spec: AdapterSpec) -> ClientTask:
    """The task of a client whose row is `row`."""
    return task_for(client, dispatched(dispatcher, adapter, row, spec), row, dispatcher.sends(row, spec).cut)


def product(pair: LoraPair) -> Dense:
    dense: Dense = pair.scale * pair.B.double().numpy() @ pair.A.double().numpy()
    return dense


@st.composite
def situations(
    draw: st.DrawFn,
    dispatchers: Sequence[Dispatcher] = BY_PRODUCT,
    factors: str = "both",
    steps: bool = True,
    max_rank: int | None = None,
    banks: Sequence[str] = ("new", "low", "full"),
) -> Situation:
    """`steps` = False: every client returns what it was sent. `factors` = "B": A comes back as it was sent."""
    spec = tiny_spec(draw(st.integers(1, 2)), max_rank or draw(st.integers(1, 5)))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    global_pair = bank_of(spec, draw(st.sampled_from(banks)), rng)
    dispatcher = draw(st.sampled_from(dispatchers))
    scales = st.sampled_from([spec.scale] if not steps else [spec.scale, 0.5, 3.0])
    answers = []
    for client in range(draw(st.integers(1, 4))):
        row = row_of(draw, spec)
        task = task_sent(dispatcher, client, global_pair, row, spec)
        pairs = trained_part(task.adapter, row, spec, task.cut).pairs
        if steps:
            scale = draw(scales)
            pairs = {name: trained(pair, factors, scale, rng) for name, pair in pairs.items()}
        head = random_adapter(spec, client).head
        answers.append((task, ClientUpdate(0, client, draw(st.integers(1, 50)), Adapter(pairs, head))))
    return Situation(spec, global_pair, answers, dispatcher)


def row_of(draw: st.DrawFn, spec: AdapterSpec) -> Mask:
    """A rank for each layer, 0 too; which components, is any or the first ones."""
    ranks = draw(st.lists(st.integers(0, spec.max_rank), min_size=spec.num_layers, max_size=spec.num_layers))
    order = draw(st.permutations(range(spec.max_rank))) if draw(st.booleans()) else range(spec.max_rank)
    return np.array([np.isin(range(spec.max_rank), list(order)[:rank]) for rank in ranks])


def bank_of(spec: AdapterSpec, kind: str, rng: np.random.Generator) -> Adapter:
    global_pair = random_adapter(spec, int(rng.integers(1000)))
    if kind == "new":
        return new_adapter(spec, global_pair.head, 0)
    if kind == "low":
        dead = torch.tensor(rng.random(spec.max_rank) < 0.5)
        pairs = {n: replace(p, B=p.B.masked_fill(dead[None, :], 0.0)) for n, p in global_pair.pairs.items()}
        return replace(global_pair, pairs=pairs)
    name = spec.modules[0].name
    rest = LoraPair(global_pair.pairs[name].A[:1] + 1, global_pair.pairs[name].B[:, :1] - 1, 1.0)
    return replace(global_pair, residual={name: rest})


def trained(pair: LoraPair, factors: str, scale: float, rng: np.random.Generator) -> LoraPair:
    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return tensor + torch.tensor(rng.normal(size=tensor.shape), dtype=torch.float32)

    return LoraPair(moved(pair.A) if factors == "both" else pair.A, moved(pair.B), scale)


def assert_exact(aggregator: Aggregator, case: Situation) -> None:
    result = aggregated(aggregator, case.global_pair, case.answers, case.spec, 5)
    for name, expected in case.target("update").items():
        missed = np.linalg.norm(effective(result)[name] - expected)
        assert missed <= 1e-5 * case.size(name), name


def assert_best_of_its_rank(aggregator: Aggregator, case: Situation, form: str) -> None:
    """No global_pair of this rank is nearer to the target, the residual is as it was, and no component is dead."""
    result = aggregated(aggregator, case.global_pair, case.answers, case.spec, 5)
    assert bits(without_bank(result)) == bits(without_bank(case.global_pair))
    for name, expected in case.target(form).items():
        if not case.shares(name):
            continue
        rest = effective(case.global_pair)[name] - product(case.global_pair.pairs[name])
        unavoidable = np.linalg.norm(np.linalg.svd(expected - rest, compute_uv=False)[case.spec.max_rank :])
        missed = np.linalg.norm(effective(result)[name] - expected)
        assert missed <= unavoidable + 1e-5 * case.size(name), name
        assert (result.pairs[name].A.norm(dim=1) > 0).all(), name


def without_bank(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in adapter.tensors().items() if "residual" in name}


# ------------------------------------------------------------------------------------------------------------ exactness


def test_stack_is_exact() -> None:
    @laws
    @given(situations())
    def law(case: Situation) -> None:
        assert_exact(Stack(), case)
        result = aggregated(Stack(), case.global_pair, case.answers, case.spec, 5)
        anew = new_adapter(case.spec, {}, seed_for(5, "aggregate", 0))
        for name in case.global_pair.pairs:
            expected = anew if case.shares(name) else case.global_pair
            got = result.pairs[name]
            assert bits({0: got.A, 1: got.B}) == bits({0: expected.pairs[name].A, 1: expected.pairs[name].B})

    law()


def test_residual_is_exact() -> None:
    @laws
    @given(situations(BY_COMPONENT))
    def law(case: Situation) -> None:
        assert_exact(Residual(), case)
        result = aggregated(Residual(), case.global_pair, case.answers, case.spec, 5)
        mean = aggregated(ParticipantMean(), case.global_pair, case.answers, case.spec, 5)
        assert bits(replace(result, residual={}).tensors()) == bits(replace(mean, residual={}).tensors())

    law()


@pytest.mark.parametrize("period", [1, 2])
def test_fed_svd_is_exact(period: int) -> None:
    @laws
    @given(situations(BY_COMPONENT, factors="B"))
    def law(case: Situation) -> None:
        assert_exact(FedSvd(period=period), case)

    law()


def test_product_svd_is_the_best_approximation_of_the_mean_product() -> None:
    @laws
    @given(situations())
    def law(case: Situation) -> None:
        assert_best_of_its_rank(ProductSvd(), case, "value")

    law()


def test_product_update_is_the_best_approximation_of_the_mean_change() -> None:
    @laws
    @given(situations())
    def law(case: Situation) -> None:
        assert_best_of_its_rank(ProductUpdate(), case, "update")

    law()


@pytest.mark.parametrize(
    ("aggregator", "factors"),
    [(Stack(), "both"), (Residual(), "both"), (ProductSvd(), "both"), (ProductUpdate(), "both"), (FedSvd(), "B")],
    ids=repr,
)
def test_from_a_new_bank_all_reproduce_the_mean_product(aggregator: Aggregator, factors: str) -> None:
    """Σ_k p_k s_k B_k A_k itself, of mixed ranks and scales, where the global adapter's rank can hold it."""

    @laws
    @given(situations((Truncate(),), factors, max_rank=5, banks=("new",)))
    def law(case: Situation) -> None:
        result = aggregated(aggregator, case.global_pair, case.answers, case.spec, 5)
        for name, got in effective(result).items():
            parts = [
                case.shares(name)[u.client] * product(u.adapter.pairs[name])
                for _, u in case.answers
                if name in u.adapter.pairs
            ]
            assert np.linalg.norm(got - sum(parts)) <= 1e-5 * case.size(name)

    law()


def test_with_a_fixed_the_mean_of_b_is_the_mean_product() -> None:
    """FFA-LoRA: participant_mean of clients that train B alone, on all components."""

    @laws
    @given(situations(BY_COMPONENT, factors="B", max_rank=1))
    def law(case: Situation) -> None:
        same_scale = [
            (
                t,
                replace(
                    u,
                    adapter=replace(
                        u.adapter, pairs={n: replace(p, scale=case.spec.scale) for n, p in u.adapter.pairs.items()}
                    ),
                ),
            )
            for t, u in case.answers
        ]
        case = replace(case, answers=same_scale, global_pair=replace(case.global_pair, residual={}))
        assert_exact(ParticipantMean(), case)

    law()


@pytest.mark.parametrize("name", ["participant_mean", "zero_pad"])
def test_one_shared_factor_makes_means_of_unequal_ranks_exact(name: str) -> None:
    """With A shared, a mean of B in mixed ranks is the same mean of the products, component by component."""
    aggregator = registry.find("aggregator", name)()
    spec = tiny_spec(1, max_rank=4)
    global_pair = random_adapter(spec, 0)
    rng = np.random.default_rng(0)
    rows = [np.arange(4)[None, :] < rank for rank in (1, 2, 4, 4)]
    sizes = (3, 10, 7, 20)
    tasks = [task_sent(Truncate(), k, global_pair, row, spec) for k, row in enumerate(rows)]
    answers = []
    for task, size in zip(tasks, sizes, strict=True):
        part = trained_part(task.adapter, task.trained, spec, task.cut).pairs
        pairs = {n: trained(p, "B", p.scale, rng) for n, p in part.items()}
        answers.append((task, ClientUpdate(0, task.client, size, Adapter(pairs, global_pair.head))))
    mean = aggregated(aggregator, global_pair, answers, spec, 0)
    result = effective(with_still_factors(mean, global_pair, frozenset("B")))  # as the round does where only B trains
    for module in spec.modules:
        expected = np.zeros((module.d_out, module.d_in))
        for q in range(4):
            owners = [(s, u.adapter.pairs[module.name]) for s, (_, u) in zip(sizes, answers, strict=True)]
            owners = [(s, p) for s, p in owners if p.rank > q]
            weight = sum(s for s, _ in owners) if name == "participant_mean" else sum(sizes)
            for s, pair in owners:
                expected += s / weight * product(LoraPair(pair.A[q : q + 1], pair.B[:, q : q + 1], pair.scale))
        np.testing.assert_allclose(result[module.name], expected, rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------------------------------- no local step


@pytest.mark.parametrize(
    ("aggregator", "dispatchers"),
    [
        (ProductUpdate(), BY_PRODUCT),
        (ProductUpdate(eta=0.3), BY_PRODUCT),
        (Stack(), BY_PRODUCT),
        (Residual(), BY_COMPONENT),
        (Refine(), BY_COMPONENT),
        (FedSvd(), BY_COMPONENT),
        (ProductSvd(), (Whole(),)),  # "fold": what a client does not train acts all the same
    ],
    ids=repr,
)
def test_without_a_local_step_the_model_stays_as_it_is(
    aggregator: Aggregator, dispatchers: tuple[Dispatcher, ...]
) -> None:
    @laws
    @given(situations(dispatchers, steps=False))
    def law(case: Situation) -> None:
        result = aggregated(aggregator, case.global_pair, case.answers, case.spec, 5)
        for name, before in effective(case.global_pair).items():
            assert np.linalg.norm(effective(result)[name] - before) <= 1e-5 * case.size(name)
        if not isinstance(aggregator, Stack):
            assert bits(without_bank(result)) == bits(without_bank(case.global_pair))

    law()


def without_a_step(ranks: Sequence[int], global_pair: Adapter, spec: AdapterSpec) -> Answers:
    answers = []
    for client, rank in enumerate(ranks):
        row = np.tile(np.arange(spec.max_rank) < rank, (spec.num_layers, 1))
        task = task_sent(Truncate(), client, global_pair, row, spec)
        answers.append(
            (
                task,
                ClientUpdate(
                    0, client, 1, replace(trained_part(task.adapter, row, spec, task.cut), head=global_pair.head)
                ),
            )
        )
    return answers


def test_flexlora_shrinks_what_it_did_not_send() -> None:
    """Two clients, one of half the rank: without any training the components that it lacks are halved. By design."""
    spec = tiny_spec(1, max_rank=4)
    global_pair = aggregated(
        ProductSvd(), random_adapter(spec, 0), without_a_step([4], random_adapter(spec, 0), spec), spec, 0
    )
    answers = without_a_step([2, 4], global_pair, spec)
    collapsed, kept, partitioned = (
        effective(aggregated(aggregator, global_pair, answers, spec, 0))
        for aggregator in (ProductSvd(), ProductUpdate(), RankPartition())
    )
    for name, before in effective(global_pair).items():
        U, S, Vh = np.linalg.svd(before)
        S[2:] /= 2
        np.testing.assert_allclose(collapsed[name], U[:, : len(S)] * S @ Vh[: len(S)], atol=1e-4)
        np.testing.assert_allclose(kept[name], before, atol=1e-4)
        np.testing.assert_allclose(partitioned[name], before, atol=1e-4)


# ------------------------------------------------------------------------------------------------------- one by one


@pytest.mark.parametrize(
    ("aggregator", "dispatchers"),
    [
        (ProductSvd(), BY_PRODUCT),
        (ProductUpdate(), BY_PRODUCT),
        (RankPartition(), BY_PRODUCT),
        (Stack(), BY_PRODUCT),
        (Residual(), BY_COMPONENT),
        (Refine(), BY_COMPONENT),
        (FedSvd(), BY_COMPONENT),
    ],
    ids=repr,
)
def test_order_is_irrelevant_and_what_nobody_trained_stays(
    aggregator: Aggregator, dispatchers: tuple[Dispatcher, ...]
) -> None:
    @laws
    @given(situations(dispatchers, "B" if TRAINS_ONLY_B in aggregator.demands.needs else "both"))
    def law(case: Situation) -> None:
        result = aggregated(aggregator, case.global_pair, case.answers, case.spec, 5)
        for answers in (case.answers[::-1], [*case.answers[1:], *case.answers[:1]]):
            assert bits(aggregated(aggregator, case.global_pair, answers, case.spec, 5).tensors()) == bits(
                result.tensors()
            )
        for module in case.spec.modules:
            if not case.shares(module.name):
                for before, after in (
                    (case.global_pair.pairs, result.pairs),
                    (case.global_pair.residual, result.residual),
                ):
                    kept = [
                        bits({"A": p[module.name].A, "B": p[module.name].B})
                        for p in (before, after)
                        if module.name in p
                    ]
                    assert len(kept) != 1
                    assert kept[:1] == kept[1:]

    law()


def by_hand(
    rows: Sequence[Sequence[int]], values: Sequence[Sequence[float]], global_pair: Sequence[float]
) -> Situation:
    """One module of 3 × 3 and two clients of equal size. Component q is the entry (q, q): A has unit rows."""
    spec = AdapterSpec((ModuleSpec("m", 0, d_in=3, d_out=3),), ("layer",), max_rank=2, scale=1.0)

    def diagonal(entries: Sequence[float]) -> Adapter:
        return Adapter({"m": LoraPair(torch.eye(2, 3), torch.diag(torch.tensor(entries))[:, :2].contiguous(), 1.0)})

    start = diagonal([*global_pair, 0.0])
    answers = []
    for client, (row, entries) in enumerate(zip(rows, values, strict=True)):
        mask = np.array([row], dtype=bool)
        after = trained_part(diagonal([*entries, 0.0]), mask, spec)
        answers.append((task_sent(Truncate(), client, start, mask, spec), ClientUpdate(0, client, 7, after)))
    return Situation(spec, start, answers, Truncate())


# The global adapter is diag(4, 1). One client trains the first component alone and makes a 6 of it; the other leaves
# the first at 4 and makes a 3 of the second.
HAND = by_hand([[1, 0], [1, 1]], [[6.0, 0.0], [4.0, 3.0]], global_pair=[4.0, 1.0])


@pytest.mark.parametrize(
    ("aggregator", "expected"),
    [
        (ProductUpdate(), [5.0, 2.0]),  # 4 + (2 + 0) / 2,  1 + (0 + 2) / 2
        (ProductUpdate(eta=0.5), [4.5, 1.5]),
        (ProductSvd(), [5.0, 1.5]),  # (6 + 4) / 2,  (0 + 3) / 2
        (RankPartition(), [5.0, 3.0]),  # (6 + 4) / 2,  3 / 1
        (Stack(), [5.0, 2.0]),
        (Stack(energy=0.8), [5.0, 0.0]),  # 25 of 25 + 4 are 86 %
        (Stack(energy=0.9), [5.0, 2.0]),
        (Stack(residual_rank=1), [5.0, 0.0]),
        (Residual(), [5.0, 2.0]),
        (FedSvd(), [5.0, 2.0]),
    ],
    ids=repr,
)
def test_by_hand(aggregator: Aggregator, expected: list[float]) -> None:
    got = aggregated(aggregator, HAND.global_pair, HAND.answers, HAND.spec, 0)
    np.testing.assert_allclose(effective(got)["m"], np.diag([*expected, 0.0]), atol=1e-6)


def test_fedex_by_hand() -> None:
    """The means are 5 and 3, of which the second is 1 too much."""
    got = aggregated(Residual(), HAND.global_pair, HAND.answers, HAND.spec, 0)
    np.testing.assert_allclose(product(got.pairs["m"]), np.diag([5.0, 3.0, 0.0]), atol=1e-6)
    np.testing.assert_allclose(product(got.residual["m"]), np.diag([0.0, -1.0, 0.0]), atol=1e-6)
    assert got.residual["m"].rank == 1


@pytest.mark.parametrize("aggregator", [ProductUpdate(), ProductSvd(), RankPartition(), Stack()], ids=repr)
def test_clients_that_unlearn_everything_leave_nothing(aggregator: Aggregator) -> None:
    """Shares of a third do not add up to 1 in float64; what is left of the global adapter is no direction."""
    row = np.array([[True, True]])
    zero = Adapter({"m": LoraPair(torch.eye(2, 3), torch.zeros(3, 2), 1.0)})
    answers = [
        (task_for(k, HAND.global_pair, row), ClientUpdate(0, k, n, zero)) for k, n in enumerate((3, 7, 11, 13, 17))
    ]
    got = aggregated(aggregator, HAND.global_pair, answers, HAND.spec, 0)
    assert not got.pairs["m"].B.any()
    assert got.residual == {}


def test_the_bank_is_split_evenly() -> None:
    got = aggregated(ProductUpdate(), HAND.global_pair, HAND.answers, HAND.spec, 0).pairs["m"]
    np.testing.assert_allclose(got.A.numpy(), np.diag([5.0, 2.0, 0.0])[:2] ** 0.5, atol=1e-6)
    np.testing.assert_allclose(got.B.numpy(), np.diag([5.0, 2.0, 0.0])[:, :2] ** 0.5, atol=1e-6)


def test_a_limited_residual_drops_the_faintest_directions() -> None:
    rows = [[1, 1], [1, 1]]
    case = by_hand(rows, [[1.0, 1.0], [3.0, 9.0]], global_pair=[1.0, 1.0])
    case.answers[1][1].adapter.pairs["m"].A.mul_(3.0)  # B (1, 3) and (1, 9) with A (1, 3) vary together by 1 and 4
    whole, cut = (
        aggregated(a, case.global_pair, case.answers, case.spec, 0) for a in (Residual(), Residual(residual_rank=1))
    )
    np.testing.assert_allclose(product(whole.residual["m"]), np.diag([1.0, 4.0, 0.0]), atol=1e-5)
    np.testing.assert_allclose(product(cut.residual["m"]), np.diag([0.0, 4.0, 0.0]), atol=1e-5)


@pytest.mark.parametrize("aggregator", [Stack(), Residual()], ids=repr)
def test_residuals_add_up_over_rounds(aggregator: Aggregator) -> None:
    global_pair, expected, row = HAND.global_pair, effective(HAND.global_pair)["m"], np.array([[True, False]])
    for value in (1.0, 5.0, 2.0):
        task = task_sent(Truncate(), 0, global_pair, row, HAND.spec)
        back = LoraPair(torch.eye(1, 3), value * torch.eye(3, 1), 1.0)
        expected = expected + product(back) - product(task.adapter.pairs["m"])
        answers = [(task, ClientUpdate(0, 0, 1, Adapter({"m": back})))]
        global_pair = aggregated(aggregator, global_pair, answers, HAND.spec, 0)
        np.testing.assert_allclose(effective(global_pair)["m"], expected, atol=1e-5)


def test_a_rest_of_rounding_errors_is_no_residual() -> None:
    """Where A is shared the mean of factors is the mean of products, and nothing has to travel beside the global
    adapter.
    """

    @laws
    @given(situations((Whole(),), "B", max_rank=3, banks=("new", "low")))
    def law(case: Situation) -> None:
        rows = np.ones((case.spec.num_layers, case.spec.max_rank), dtype=bool)
        answers = []
        for client, seed in enumerate((1, 2)):
            pairs = random_adapter(case.spec, seed).pairs
            shared = {n: replace(p, A=case.global_pair.pairs[n].A) for n, p in pairs.items()}
            answers.append(
                (
                    task_for(client, case.global_pair, rows),
                    ClientUpdate(0, client, 3 + seed, Adapter(shared, case.global_pair.head)),
                )
            )
        assert aggregated(Residual(), case.global_pair, answers, case.spec, 0).residual == {}

    law()


def test_refine_is_the_ridge_solution_and_never_worse_than_the_mean() -> None:
    @laws
    @given(situations(BY_COMPONENT))
    def law(case: Situation) -> None:
        mean = aggregated(ParticipantMean(), case.global_pair, case.answers, case.spec, 0)
        result = aggregated(Refine(ridge=0.5), case.global_pair, case.answers, case.spec, 0)
        target, rest = case.target("update"), effective(case.global_pair)
        for module in case.spec.modules:
            rows = np.logical_or.reduce([task.trained[module.layer] for task, _ in case.answers])
            if not rows.any():
                continue
            before, after = mean.pairs[module.name], result.pairs[module.name]
            wanted = target[module.name] - rest[module.name] + product(case.global_pair.pairs[module.name])
            missed = wanted - product(before)
            A = before.A.double().numpy()[rows]
            delta = missed @ A.T @ np.linalg.inv(A @ A.T + 0.5 * np.eye(len(A))) / case.spec.scale
            expected = before.B.double().numpy()
            expected[:, rows] += delta
            np.testing.assert_allclose(after.B.numpy(), expected, atol=1e-5 * case.size(module.name))
            assert bits({0: after.A}) == bits({0: before.A})
            worse = np.linalg.norm(wanted - product(after)) - np.linalg.norm(missed)
            assert worse <= 1e-5 * case.size(module.name)

    law()


def test_refine_by_hand() -> None:
    """2 · 1 and 4 · 3 have the mean 7, and the means 3 and 2 the product 6; ΔB = 1 · 2 / (2² + 1)."""
    spec = AdapterSpec((ModuleSpec("m", 0, d_in=1, d_out=1),), ("layer",), max_rank=1, scale=5.0)

    def of(A: float, B: float) -> Adapter:
        return Adapter({"m": LoraPair(torch.tensor([[A]]), torch.tensor([[B]]), 5.0)})

    row = np.array([[True]])
    answers = [
        (task_for(k, of(9.0, 9.0), row), ClientUpdate(0, k, 1, a)) for k, a in enumerate((of(1.0, 2.0), of(3.0, 4.0)))
    ]
    got = aggregated(Refine(ridge=1.0), of(9.0, 9.0), answers, spec, 0).pairs["m"]
    assert (got.A.item(), got.B.item()) == pytest.approx((2.0, 3.4))


def test_with_equal_ranks_a_partition_is_the_whole() -> None:
    @laws
    @given(situations((Whole(),)))
    def law(case: Situation) -> None:
        one, other = (
            aggregated(a, case.global_pair, case.answers, case.spec, 0) for a in (RankPartition(), ProductSvd())
        )
        for name, expected in effective(other).items():
            np.testing.assert_allclose(
                np.linalg.norm(effective(one)[name]), np.linalg.norm(expected), atol=1e-5 * case.size(name)
            )

    law()


def test_fed_svd_makes_the_rows_of_a_orthonormal_every_period() -> None:
    @laws
    @given(situations(BY_COMPONENT, "B"))
    def law(case: Situation) -> None:
        first, second = (
            aggregated(
                FedSvd(period=2),
                case.global_pair,
                [(replace(t, round=number), u) for t, u in case.answers],
                case.spec,
                5,
            )
            for number in (0, 1)
        )
        for name, old in case.global_pair.pairs.items():
            assert bits({0: first.pairs[name].A}) == bits({0: old.A})
            if case.shares(name):
                A = second.pairs[name].A.double().numpy()
                np.testing.assert_allclose(A @ A.T, np.eye(len(A)), atol=1e-5)
            np.testing.assert_allclose(effective(second)[name], effective(first)[name], atol=1e-5 * case.size(name))

    law()


def test_what_is_drawn_anew_depends_on_the_seed() -> None:
    spec = tiny_spec(1, max_rank=4)
    global_pair = new_adapter(spec, random_adapter(spec, 0).head, 0)
    row = np.array([[True, False, False, False]])
    task = task_sent(Truncate(), 0, global_pair, row, spec)
    update = ClientUpdate(0, 0, 1, replace(trained_part(random_adapter(spec, 0), row, spec), head=global_pair.head))
    for aggregator in (ProductSvd(), ProductUpdate(), RankPartition()):
        one, other = (aggregated(aggregator, global_pair, [(task, update)], spec, seed).pairs for seed in (1, 2))
        anew = new_adapter(spec, {}, seed_for(1, "aggregate", 0))
        for name in global_pair.pairs:
            assert bits({0: one[name].A[1:]}) == bits({0: anew.pairs[name].A[1:]})
            assert not torch.equal(one[name].A[1:], other[name].A[1:])
            torch.testing.assert_close(one[name].A[:1], other[name].A[:1])
            assert not one[name].B[:, 1:].any()


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [
        (ProductUpdate, "eta", 0.0),
        (Stack, "energy", 0.0),
        (Stack, "energy", 1.1),
        (Stack, "residual_rank", 0),
        (Residual, "residual_rank", 0),
        (Refine, "ridge", 0.0),
        (FedSvd, "period", 0),
        *[
            (cls, "weighting", "steps")
            for cls in (ProductSvd, ProductUpdate, RankPartition, Stack, Residual, Refine, FedSvd)
        ],
    ],
)
def test_settings_that_cannot_be(cls: Any, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .*, not {value!r}"):
        cls(**{field: value})
