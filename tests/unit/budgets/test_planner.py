"""The fastest policy that fits is taken, by hand on a model of costs that is easy to add up."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from factories import tiny_spec

from hellora.budgets.cost import Cost, CostModel, Work
from hellora.budgets.planner import RESERVE, USES, Planner, in_words, largest, largest_of_growing
from hellora.core.errors import InputError
from hellora.core.exchange import Policy, TrainSettings
from hellora.core.types import Budget, ClientProfile, Ranks


@dataclass(frozen=True, eq=False)
class Simple(CostModel):
    """Weights of 1000 bytes; a layer holds 100 for each example, half of that recomputed, a fifth as int8."""

    def cost(self, ranks: Ranks, policy: Policy, work: Work) -> Cost:
        layers = int(np.count_nonzero(ranks))
        share = {"none": 1.0, "frozen": 0.9, "all": 0.5}[policy.recompute] * (0.2 if policy.int8_activations else 1.0)
        examples = min(policy.micro_batch or work.batch, work.batch)
        peak = 1000 + round(layers * 100 * share * examples)
        calls.append(policy)
        return Cost(peak, self.operations(ranks, policy, work), 10 * int(ranks.sum()))

    def operations(self, ranks: Ranks, policy: Policy, work: Work) -> float:
        return 1000.0 * {"none": 1.0, "frozen": 1.1, "all": 1.3}[policy.recompute] * work.examples


calls: list[Policy] = []


def planner(may: tuple[str, ...] = USES, policy: Policy = Policy(), **train: Any) -> Planner:
    nothing: Any = {}
    zeros = np.zeros(3)
    model = Simple(tiny_spec(3, 4), nothing, 1000, 4, 0, 2, zeros, 0.0, 1, 1)
    return Planner(model, TrainSettings(**{"batch_size": 8, **train}), policy, may)


def client(memory: float | None = None, examples: int = 8, speed: float | None = None, **budget: Any) -> ClientProfile:
    """`memory`: what is free for the step, the reserve apart."""
    whole = None if memory is None else math.ceil(1000 + memory * (1 + RESERVE))
    return ClientProfile(3, examples, Budget(memory_bytes=whole, **budget), speed)


FULL = np.array([4, 4, 4])


@pytest.mark.parametrize(
    ("memory", "policy"),
    [
        (None, Policy()),
        (2400, Policy()),
        (2399, Policy(recompute="frozen")),  # 1.1 times slower; two halves are 1.12 times
        (2159, Policy(micro_batch=4)),
        (1199, Policy(recompute="frozen", micro_batch=4)),
        (1079, Policy(micro_batch=2)),
        (299, Policy(recompute="frozen", micro_batch=1)),  # 1.1 · 1.36 = 1.50
        (269, Policy(int8_activations=True, micro_batch=4)),  # 1.62
    ],
    ids=str,
)
def test_the_fastest_that_fits(memory: float | None, policy: Policy) -> None:
    estimate = planner(("recompute_frozen", "micro_batch", "int8_activations")).estimate(client(memory), FULL)
    assert estimate is not None
    assert estimate.policy == policy


def test_nothing_fits_in_less_than_the_least() -> None:
    exact = planner(("recompute_all", "micro_batch"))
    assert exact.estimate(client(150), FULL) is not None
    assert exact.estimate(client(148), FULL) is None
    assert exact.fits(client(50), np.array([0, 0, 1]))
    assert not exact.fits(client(48), np.array([0, 0, 1]))
    assert exact.fits(client(0), np.zeros(3, dtype=np.int64)), "to train nothing takes nothing"
    assert exact.trains(client(50))
    assert not exact.trains(client(48))


def test_the_reserve_is_of_the_step_alone() -> None:
    only = planner(())
    for memory, fits in ((1000 + 2400 * 1.05, True), (1000 + 2400 * 1.05 - 1, False)):
        profile = ClientProfile(0, 8, Budget(memory_bytes=int(memory)))
        assert only.fits(profile, FULL) is fits


def test_seconds_need_a_speed() -> None:
    only = planner(())
    estimate = only.estimate(client(seconds=2.0, speed=4000.0), FULL)
    assert estimate is not None
    assert estimate.seconds == 2.0
    assert only.estimate(client(seconds=1.9, speed=4000.0), FULL) is None
    assert only.estimate(client(seconds=1e9), FULL) is None
    unhurried = only.estimate(client(), FULL)
    assert unhurried is not None
    assert unhurried.seconds is None


def test_time_and_memory_together() -> None:
    """What would fit in memory takes too long."""
    again = planner(("recompute_all",))
    assert again.fits(client(1200, seconds=2.6, speed=4000.0), FULL)
    assert not again.fits(client(1200, seconds=2.5, speed=4000.0), FULL)


def test_uplink() -> None:
    assert planner().fits(client(uplink_bytes=120), FULL)
    assert not planner().fits(client(uplink_bytes=119), FULL)


def test_offers_are_known_from_then_on() -> None:
    once = planner()
    calls.clear()
    first = once.estimate(client(500), FULL)
    count = len(calls)
    assert once.estimate(client(500), FULL) is first
    assert len(calls) == count > 0
    once.estimate(client(500), np.array([4, 4, 0]))
    once.estimate(client(501), FULL)
    once.estimate(client(500, examples=7), FULL)
    assert len(calls) > 3 * count - 20


def test_no_more_is_asked_than_decides() -> None:
    """An estimate asks the fastest policy first, a yes or no those that recompute last."""
    exact = planner(("recompute_all", "micro_batch"))
    calls.clear()
    assert exact.fits(client(300), FULL)
    assert [policy.in_words for policy in calls] == ["plain", "micro_batch 1"]
    calls.clear()
    assert exact.estimate(client(1200), FULL) is not None
    assert [policy.in_words for policy in calls] == ["plain", "micro_batch 4"]
    calls.clear()
    assert exact.estimate(client(1199), FULL) is not None
    assert [policy.in_words for policy in calls] == ["plain", "micro_batch 4", "micro_batch 2"]


@pytest.mark.parametrize(
    ("batch_size", "policy", "sizes"),
    [
        (8, Policy(), {None, 1, 2, 4}),
        (6, Policy(), {None, 1, 2, 4}),
        (1, Policy(), {None}),
        (16, Policy(micro_batch=4), {4, 1, 2}),
    ],
)
def test_sizes_of_micro_batches(batch_size: int, policy: Policy, sizes: set[int | None]) -> None:
    found = planner(("micro_batch",), policy, batch_size=batch_size).policies
    assert {each.micro_batch for each in found} == sizes
    assert len(found) == len(sizes)


def test_a_micro_batch_is_smaller_than_the_batch() -> None:
    found = planner(("micro_batch",))
    usable = found.usable(found.work(client(examples=2)))
    assert [policy.micro_batch for policy in usable] == [None, 1]


def test_what_all_do_is_done_whatever_the_client_may() -> None:
    own = Policy(recompute="frozen", bf16=True, merge=False, prefix_cache="memory")
    assert planner((), own).policies == (own,)
    for each in planner(USES, own).policies:
        assert each.bf16
        assert not each.merge
        assert each.prefix_cache == "memory"


def test_work_of_a_client() -> None:
    assert planner(epochs=3).work(client(examples=20)) == Work(20, 8, 3.0)
    assert planner(steps=5).work(client(examples=20)) == Work(20, 8, 2.0)
    assert planner(steps=5).work(client(examples=4)) == Work(4, 8, 5.0)
    assert planner().work(client(examples=0)).examples == 8, "its data are not known yet"


def test_check_refuses_a_row_that_does_not_fit() -> None:
    mask = np.zeros((2, 3, 4), dtype=bool)
    mask[0], mask[1, 2] = True, True
    profiles = (ClientProfile(7, 8), client(50))
    exact = planner(("recompute_all", "micro_batch"))
    exact.check(profiles, mask)
    with pytest.raises(InputError, match=r"client 3 a row that does not fit its budget \(memory 1\.\d KiB\)"):
        exact.check((profiles[0], client(48)), mask)


def test_the_least_that_is_named_fits() -> None:
    exact = planner(("recompute_all", "micro_batch"))
    # 1000 of weights, 50 of the step, 2.5 of reserve
    assert exact.trains(ClientProfile(0, 8, Budget(memory_bytes=1053, uplink_bytes=10)))
    assert not exact.trains(ClientProfile(0, 8, Budget(memory_bytes=1052, uplink_bytes=10)))
    assert exact.explain(ClientProfile(0, 8, Budget(memory_bytes=1010), speed=4000.0)) == (
        "nothing fits a client with memory 1010 B: the least that would is memory 1.0 KiB, uplink 10 B, 2 s"
    )


def test_largest() -> None:
    assert largest(5, lambda c: c in (1, 3)) == 3
    assert largest(5, lambda _: False) == 0
    assert largest(0, lambda _: True) == 0
    for most in range(7):
        assert largest_of_growing(6, lambda c, most=most: c <= most) == most


def test_budgets_in_words() -> None:
    assert in_words(Budget(memory_bytes=2**30, uplink_bytes=2048, seconds=1.5)) == (
        "memory 1.0 GiB, uplink 2.0 KiB, 1.5 s per round"
    )
    assert in_words(Budget(layers=3)) == "no limit in bytes or seconds"


class Unbearable(Simple):
    """A model whose blocks cannot be run again."""

    def cost(self, ranks: Ranks, policy: Policy, work: Work) -> Cost:
        return replace(super().cost(ranks, policy, work), refused="" if policy.recompute == "none" else "they change")


def test_what_a_model_does_not_bear_is_no_way_to_fit_and_its_bytes_are_not_told() -> None:
    plain = replace(planner(), model=unbearable())
    found = plain.estimate(client(2399), FULL)
    assert found is not None
    assert found.policy.recompute == "none"
    assert plain.estimate(client(10), FULL) is None
    assert "the least that would is memory" in plain.explain(client(10))
    for_all = replace(planner(policy=Policy(recompute="all")), model=unbearable())
    assert not for_all.fits(client(10**9), FULL)
    said = for_all.explain(client(10**9))
    assert said.endswith("recompute_all does not work with this model (they change): leave it out")
    assert "GiB" not in said.partition(":")[2]


def unbearable() -> CostModel:
    nothing: Any = {}
    return Unbearable(tiny_spec(3, 4), nothing, 1000, 4, 0, 2, np.zeros(3), 0.0, 1, 1)
