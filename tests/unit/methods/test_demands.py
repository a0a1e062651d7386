"""What is needed and promised, and the sentence for what nobody promises."""

import pytest

from hellora.core.errors import InputError
from hellora.methods.demands import Demands, Fact, check_demands

WATER = Fact("clean water", "open the tap")
AIR = Fact("air", "open the window")


def test_a_need_that_nobody_promises_is_refused_in_a_sentence() -> None:
    fish, tap = Demands(needs=frozenset({WATER})), Demands(promises=frozenset({WATER}))
    check_demands([("the fish", fish), ("the tap", tap)])
    check_demands([])
    with pytest.raises(InputError, match=r"^the fish needs clean water: open the tap$"):
        check_demands([("the fish", fish), ("the bird", Demands(promises=frozenset({AIR})))])


def test_the_first_need_of_the_first_party_is_named() -> None:
    both = Demands(needs=frozenset({WATER, AIR}))
    with pytest.raises(InputError, match=r"^one needs air: open the window$"):
        check_demands([("one", both), ("two", both)])


def test_who_needs_something_may_promise_it_itself() -> None:
    check_demands([("the frog", Demands(needs=frozenset({WATER}), promises=frozenset({WATER})))])


def test_what_one_takes_no_other_may_take() -> None:
    bath = Fact("fill the bath", "let one of them wait")
    one, other = Demands(takes=frozenset({bath})), Demands(takes=frozenset({bath, AIR}))
    check_demands([("one", one), ("nobody", Demands())])
    with pytest.raises(InputError, match=r"^one and other both fill the bath: let one of them wait$"):
        check_demands([("one", one), ("nobody", Demands()), ("other", other)])


def test_more_and_less() -> None:
    start = Demands(needs=frozenset({WATER}), brings=("layer_scores",), takes=frozenset({AIR}))
    more = start.also(needs={AIR}, promises={WATER})
    assert more == Demands(frozenset({WATER, AIR}), frozenset({WATER}), ("layer_scores",), frozenset({AIR}))
    assert more.less(WATER) == Demands(frozenset({AIR}), frozenset(), ("layer_scores",), frozenset({AIR}))
    assert start.needs == {WATER}
