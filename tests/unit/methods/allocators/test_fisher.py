"""fisher and fed_hello: when importance is measured, how long it is in force, and what becomes of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from factories import bits, context_of, fleet_of, no_scores, rows_of

from hellora.core.state import StrategyState
from hellora.methods.allocators.fed_hello import FedHello
from hellora.methods.allocators.fisher import Fisher
from hellora.methods.allocators.randomized_geometric import RandomizedGeometric
from hellora.methods.context import RoundContext, Scores
from hellora.methods.demands import LAYER_SCORES_REPORTED, PROXY_DATA, SCORED_MODEL
from hellora.methods.layer_sampling import sample_layers
from hellora.methods.strategies import Allocator

FLEET = fleet_of(6, 9, 12)


def scores_at(round: int) -> Scores:
    """Scores of three clear clusters, other ones in every round."""
    return np.random.default_rng(round).permutation(np.repeat([1.0, 50.0, 100.0], 4))


def probabilities_at(round: int) -> Scores:
    """By hand: 4 layers each of weight 1, 2 and 3, together 24."""
    return np.select([scores_at(round) == value for value in (1.0, 50.0, 100.0)], [1 / 24, 2 / 24, 3 / 24])


def run(
    allocator: Allocator, rounds: int, keep: Callable[[StrategyState], StrategyState] = dict
) -> tuple[list[list[list[int]]], list[int]]:
    """The rows of every round, and the rounds in which the scores were asked for."""
    state: StrategyState = {}
    rows, asked = [], []
    for t in range(rounds):

        def measure(t: int = t) -> Scores:
            asked.append(t)
            return scores_at(t)

        allocation, state = allocator.allocate(
            context_of(FLEET, round=t, rounds=rounds, layer_scores=measure, state=keep(state))
        )
        rows.append(rows_of(allocation.mask))
    return rows, asked


def drawn(p: Scores, context: RoundContext, keyed: int | None = None) -> list[list[int]]:
    """What each client of the cohort draws with probabilities p."""
    clients = [(client, client.budget.capacity(context.spec.num_layers)) for client in context.cohort]
    return [sample_layers(p, c, context.rng(client.id, "layers", keyed)).tolist() for client, c in clients]


@pytest.mark.parametrize("allocator", [FedHello(warmup=50, refresh=50), FedHello()], ids=["explicit", "default"])
def test_published_schedule(allocator: FedHello) -> None:
    rows, asked = run(allocator, rounds=500)
    assert asked == [50, 100, 150, 200, 250, 300, 350, 400, 450]
    for t, row in enumerate(rows):
        context = context_of(FLEET, round=t)
        p = RandomizedGeometric("bottleneck").probabilities(context) if t < 50 else probabilities_at(t - t % 50)
        assert row == drawn(p, context), f"round {t}"


def test_warmup_and_refresh_are_counted_from_the_end_of_the_warmup() -> None:
    assert run(FedHello(warmup=7, refresh=4), rounds=20)[1] == [7, 11, 15, 19]
    assert run(FedHello(warmup=0, refresh=8), rounds=20)[1] == [0, 8, 16]
    assert run(FedHello(), rounds=5)[1] == [1, 2, 3, 4]  # a tenth, at least 1


def test_fisher_alone_measures_from_round_0() -> None:
    assert run(Fisher(), rounds=50)[1] == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]
    assert run(Fisher(refresh=20), rounds=50)[1] == [0, 20, 40]


@pytest.mark.parametrize("allocator", [Fisher(refresh=10), FedHello(warmup=4, refresh=10)], ids=repr)
def test_resample_on_refresh_keeps_the_rows(allocator: Any) -> None:
    allocator = type(allocator)(**{**vars(allocator), "resample": "on_refresh"})
    rows, asked = run(allocator, rounds=30)
    for start, end in zip(asked, [*asked[1:], 30], strict=True):
        assert rows[start:end] == [drawn(probabilities_at(start), context_of(FLEET), keyed=start)] * (end - start)
    assert len({str(rows[start]) for start in asked}) == len(asked)


def test_resample_every_round_draws_anew() -> None:
    rows, _ = run(Fisher(refresh=10), rounds=10)
    assert len({str(row) for row in rows}) == 10


@pytest.mark.parametrize("resample", ["every_round", "on_refresh"])
def test_importance_survives_a_checkpoint(resample: Any) -> None:
    def reload(state: StrategyState) -> StrategyState:
        assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
        return {name: tensor.clone() for name, tensor in state.items()}

    allocator = FedHello(warmup=3, refresh=5, resample=resample)
    assert run(allocator, rounds=20, keep=reload) == run(allocator, rounds=20)


def test_memory_holds_the_raw_scores_and_when_they_were_measured() -> None:
    _, state = Fisher().allocate(context_of(FLEET, round=30, layer_scores=lambda: scores_at(30)))
    assert bits(state) == bits({"scores": torch.from_numpy(scores_at(30)), "refreshed": torch.tensor(30)})


def test_the_most_important_layers_are_the_most_likely() -> None:
    scores = np.arange(12, 0, -1.0) ** 3  # falling, so that labels in order of place would be upside down
    often = np.zeros(12)
    for t in range(600):
        context = context_of(FLEET, round=t, cohort=FLEET[:1], layer_scores=lambda: scores)
        often += Fisher().allocate(context)[0].mask[0, :, 0]
    assert often[:2].min() > often[-4:].max() + 100


@pytest.mark.parametrize("scores", [[np.nan] * 12, [1.0] * 11 + [np.inf], [3.0] * 12], ids=["nan", "inf", "equal"])
@pytest.mark.parametrize("pattern", ["bottleneck", "triangle"])
def test_degenerate_scores_fall_back_to_the_geometry(scores: list[float], pattern: Any) -> None:
    for allocator in (Fisher(fallback=pattern), FedHello(warmup=0, pattern=pattern)):
        allocation, _ = allocator.allocate(context_of(FLEET, round=9, layer_scores=lambda: np.array(scores)))
        expected, _ = RandomizedGeometric(pattern).allocate(context_of(FLEET, round=9))
        assert np.array_equal(allocation.mask, expected.mask)


def test_number_of_clusters() -> None:
    scores = np.array([1.0, 2.0, 100.0, 101.0, 300.0, 301.0, 305.0, 306.0, 900.0, 901.0, 902.0, 903.0])
    context = context_of(FLEET, layer_scores=lambda: scores)
    allocation, _ = Fisher(clusters=4).allocate(context)
    assert rows_of(allocation.mask) == drawn(np.repeat([1, 2, 3, 4], [2, 2, 4, 4]) / 34, context)


def report(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


NAN = float("nan")
SMALL = fleet_of(2, 3, 3)  # clients 10, 13 and 16 with 5, 12 and 19 examples


def after_reports(allocator: Allocator, rounds: Sequence[dict[int, torch.Tensor]], run_rounds: int) -> StrategyState:
    """The state after one round per set of reports, proxy scores being forbidden."""
    state: StrategyState = {}
    for t, reports in enumerate(rounds):
        context = context_of(SMALL, num_layers=3, round=t, rounds=run_rounds, state=state, scores=reports)
        _, state = allocator.allocate(context)
    return state


REPORTS = [
    {},
    {13: report(1, NAN, 3), 10: report(3, NAN, NAN)},
    {10: report(4, 5, NAN), 16: report(NAN, float("inf"), NAN)},
]
MEAN = (12 * 1 + 5 * 3) / (12 + 5)  # of layer 0 after the first reports; in the second nobody is believed above 3


@pytest.mark.parametrize("allocator", [Fisher(scores="clients"), FedHello(scores="clients", warmup=5)], ids=repr)
def test_reports_are_averaged_then_smoothed(allocator: Allocator) -> None:
    assert allocator.demands.needs == {LAYER_SCORES_REPORTED}
    assert allocator.demands.brings == ("layer_scores",)
    first = after_reports(allocator, REPORTS[:2], run_rounds=100)["reported"]
    np.testing.assert_allclose(first, [MEAN, np.nan, 3])
    second = after_reports(allocator, REPORTS, run_rounds=100)["reported"]
    np.testing.assert_allclose(second, [0.9 * MEAN + 0.1 * 3, 3, 3])


@pytest.mark.parametrize("claimed", [1e300, 50.0])
def test_what_one_client_claims_counts_as_the_largest_of_the_others(claimed: float) -> None:
    """Of the largest scores 2, 3 and the claim the 0.75-quantile is 3, so the claim is worth 3."""
    reports = {10: report(2, 1, 1), 13: report(1, 3, NAN), 16: report(claimed, NAN, claimed)}
    found = after_reports(Fisher(scores="clients"), [{}, reports], run_rounds=100)["reported"]
    np.testing.assert_allclose(found, [(5 * 2 + 12 + 19 * 3) / 36, (5 + 12 * 3) / 17, (5 + 19 * 3) / 24])
    alone = after_reports(Fisher(scores="clients"), [{}, reports, {16: report(claimed, NAN, NAN)}], run_rounds=100)
    np.testing.assert_allclose(alone["reported"][0], 0.9 * found[0] + 0.1 * found.max())


def test_the_examples_that_a_client_claims_to_have_are_bounded_in_reports() -> None:
    """Of 5, 12 and 2^40 examples the median is 12, so the last counts as 24 where twice the median is the most."""
    fleet = (*SMALL[:2], replace(SMALL[2], num_examples=2**40))
    reports = {10: report(1, 1, 1), 13: report(2, 2, 2), 16: report(2, 2, 2)}
    context = context_of(fleet, num_layers=3, rounds=100, scores=reports)
    _, state = Fisher(scores="clients").allocate(replace(context, max_weight=2.0))
    np.testing.assert_allclose(state["reported"], (5 * 1 + 12 * 2 + 24 * 2) / 41)


def test_a_layer_that_nobody_reported_counts_as_the_mean_of_the_others() -> None:
    """Where no client can train all layers, some may not be reported before Fisher draws them."""
    state = after_reports(Fisher(scores="clients", refresh=1), REPORTS[:2], run_rounds=100)
    np.testing.assert_allclose(state["scores"], [MEAN, (MEAN + 3) / 2, 3])


def test_smoothing() -> None:
    state = after_reports(Fisher(scores="clients", smoothing=0.5), REPORTS, run_rounds=100)
    np.testing.assert_allclose(state["reported"], [0.5 * MEAN + 0.5 * 3, 3, 3])


def test_reported_importance_is_in_force_from_refresh_to_refresh() -> None:
    state = after_reports(Fisher(scores="clients", refresh=2), REPORTS, run_rounds=100)
    assert int(state["refreshed"]) == 2
    assert bits({0: state["scores"]}) == bits({0: state["reported"]})
    later = after_reports(Fisher(scores="clients", refresh=2), [*REPORTS, {16: report(90, 90, 90)}], run_rounds=100)
    assert bits({0: later["scores"]}) == bits({0: state["scores"]}) != bits({0: later["reported"]})


def test_first_refresh_after_the_warmup_has_the_reports_of_the_warmup() -> None:
    state = after_reports(FedHello(scores="clients", warmup=2, refresh=9), REPORTS, run_rounds=100)
    np.testing.assert_allclose(state["scores"], [0.9 * MEAN + 0.1 * 3, 3, 3])


def test_without_reports_yet_the_geometry_decides() -> None:
    allocation, _ = Fisher(scores="clients").allocate(context_of(FLEET))
    expected, _ = RandomizedGeometric().allocate(context_of(FLEET))
    assert np.array_equal(allocation.mask, expected.mask)


def test_who_needs_what() -> None:
    for allocator in (Fisher(), FedHello()):
        assert allocator.demands.needs == {PROXY_DATA, SCORED_MODEL}
        assert not allocator.demands.brings
        assert "reported" not in allocator.allocate(context_of(FLEET, round=99, layer_scores=lambda: scores_at(0)))[1]
    FedHello(warmup=5).allocate(context_of(FLEET, round=4, layer_scores=no_scores))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fisher(scores="server"), "scores must be one of proxy, clients, not 'server'"),  # type: ignore[arg-type]
        (lambda: Fisher(resample="never"), "resample must be one of every_round, on_refresh"),  # type: ignore[arg-type]
        (lambda: Fisher(refresh=0), "refresh must be at least 1 round, not 0"),
        (lambda: Fisher(clusters=0), "clusters must be at least 1, not 0"),
        (lambda: Fisher(smoothing=1.0), r"smoothing must be in \[0, 1\), not 1.0"),
        (lambda: Fisher(fallback="diamond"), "not 'diamond'"),  # type: ignore[arg-type]
        (lambda: FedHello(warmup=-1), "warmup must not be negative"),
        (lambda: FedHello(refresh=0), "refresh must be at least 1 round, not 0"),
        (lambda: FedHello(pattern="diamond"), "not 'diamond'"),  # type: ignore[arg-type]
    ],
)
def test_settings_are_checked(make: Callable[[], Allocator], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
