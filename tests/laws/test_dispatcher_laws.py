"""What every dispatcher in the folder must keep to, present and future."""

from dataclasses import dataclass, replace

import hypothesis.strategies as st
import numpy as np
import pytest
from factories import (
    LargestTensor,
    assert_is_a_strategy_file,
    bits,
    dispatched,
    random_adapter,
    strategies,
    tiny_spec,
    variants,
    who_promises,
)
from hypothesis import given, settings

import hellora.methods.dispatchers
from hellora.core.algebra import prototype_of, prototype_row, trained_part
from hellora.core.exchange import TensorSpec
from hellora.core.types import Adapter, AdapterSpec, LoraPair, Mask, ModuleSpec
from hellora.methods.demands import ONLY_TRAINED, OWN_COMPONENTS, PROTOTYPES_SENT
from hellora.methods.sharing import sent_shapes
from hellora.methods.strategies import Dispatcher

laws = settings(derandomize=True, deadline=None, database=None, max_examples=60)
SPEC = tiny_spec()
DISPATCHERS = list(variants(hellora.methods.dispatchers, Dispatcher))
every_dispatcher = pytest.mark.parametrize("dispatcher", DISPATCHERS, ids=repr)


@dataclass(frozen=True, eq=False)
class Situation:
    """A global adapter and the row of a client that trains something of it."""

    spec: AdapterSpec
    adapter: Adapter
    trained: Mask


@st.composite
def situations(draw: st.DrawFn, dispatcher: Dispatcher) -> Situation:
    num_layers, max_rank = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    modules = [
        ModuleSpec(f"{layer}.{name}", layer, draw(st.integers(1, 7)), draw(st.integers(1, 7)))
        for layer in range(num_layers)
        for name in "qv"[: draw(st.integers(1, 2))]
    ]
    spec = AdapterSpec(tuple(modules), tuple(map(str, range(num_layers))), max_rank, scale=2.0)
    adapter = random_adapter(spec, draw(st.integers(0, 99)))
    sends_prototypes = PROTOTYPES_SENT in dispatcher.demands.promises  # others never meet one
    more = draw(st.sampled_from(["nothing", "no head", "prototypes" if sends_prototypes else "residual"]))
    if more == "residual":
        some = {name: pair for name, pair in random_adapter(spec, 100).pairs.items() if draw(st.booleans())}
        adapter = replace(adapter, residual={n: LoraPair(p.A[:1], p.B[:, :1], 1.0) for n, p in some.items()})
    if more == "prototypes" and max_rank > 1:
        known = draw(st.sets(st.integers(1, max_rank - 1)))
        adapter = replace(
            adapter, prototypes={r: prototype_of(random_adapter(spec, 100 + r), r, spec) for r in sorted(known)}
        )
    if more == "no head":
        adapter = replace(adapter, head={})
    mask = st.lists(st.booleans(), min_size=num_layers * max_rank, max_size=num_layers * max_rank)
    return Situation(spec, adapter, np.array(draw(mask.filter(any))).reshape(num_layers, max_rank))


@every_dispatcher
def test_a_full_row_is_the_identity(dispatcher: Dispatcher) -> None:
    adapter = random_adapter(SPEC, 0)
    full = np.ones((SPEC.num_layers, SPEC.max_rank), dtype=bool)
    assert bits(dispatched(dispatcher, adapter, full, SPEC).tensors()) == bits(adapter.tensors())


@every_dispatcher
def test_what_is_declared_to_be_sent_is_sent(dispatcher: Dispatcher) -> None:
    @laws
    @given(situations(dispatcher))
    def law(case: Situation) -> None:
        got = dispatched(dispatcher, case.adapter, case.trained, case.spec)
        sent = dispatcher.sends(case.trained, case.spec)
        declared = sent_shapes(case.adapter, sent, case.spec)
        assert declared == {name: TensorSpec.of(tensor) for name, tensor in got.tensors().items()}
        assert all(pair.scale == case.spec.scale for pair in got.pairs.values())

    law()


@every_dispatcher
def test_whether_pairs_are_cut_is_as_declared_and_what_is_trained_is_there(dispatcher: Dispatcher) -> None:
    @laws
    @given(situations(dispatcher))
    def law(case: Situation) -> None:
        got, sent = (
            dispatched(dispatcher, case.adapter, case.trained, case.spec),
            dispatcher.sends(case.trained, case.spec),
        )
        part = trained_part(got, case.trained, case.spec, sent.cut)  # refuses a pair of another rank
        counts = case.trained.sum(axis=1)
        assert {name: pair.rank for name, pair in part.pairs.items()} == {
            module.name: counts[module.layer] for module in case.spec.modules if counts[module.layer]
        }
        if sent.bypass:
            assert got.pairs.keys() == part.pairs.keys(), "blocks that are left out need no pair"

    law()


@who_promises(ONLY_TRAINED, "dispatcher", DISPATCHERS)
def test_of_a_layer_that_a_client_trains_it_receives_only_that(dispatcher: Dispatcher) -> None:
    @laws
    @given(situations(dispatcher))
    def law(case: Situation) -> None:
        got = dispatched(dispatcher, case.adapter, case.trained, case.spec)
        for module in case.spec.modules:
            if count := case.trained[module.layer].sum():
                assert got.pairs[module.name].rank == count

    law()


@who_promises(OWN_COMPONENTS, "dispatcher", DISPATCHERS)
def test_what_a_client_trains_is_the_global_adapters_own_bit_for_bit(dispatcher: Dispatcher) -> None:
    """Or that of the prototype of its rank, where these are sent."""

    @laws
    @given(situations(dispatcher))
    def law(case: Situation) -> None:
        row, whole = case.trained, case.adapter
        if PROTOTYPES_SENT in dispatcher.demands.promises:
            row = prototype_row(case.trained)
            whole = prototype_of(case.adapter, row.shape[1], case.spec)
        got = dispatched(dispatcher, case.adapter, case.trained, case.spec)
        part = trained_part(got, case.trained, case.spec, dispatcher.sends(case.trained, case.spec).cut)
        assert bits(part.tensors()) == bits(trained_part(whole, row, case.spec).tensors())
        assert bits(got.head) == bits(whole.head)

    law()


@who_promises(PROTOTYPES_SENT, "dispatcher", DISPATCHERS)
def test_a_client_receives_no_other_ranks_prototype(dispatcher: Dispatcher) -> None:
    @laws
    @given(situations(dispatcher))
    def law(case: Situation) -> None:
        assert not dispatched(dispatcher, case.adapter, case.trained, case.spec).prototypes

    law()


@every_dispatcher
def test_inputs_are_not_mutated(dispatcher: Dispatcher) -> None:
    adapter = random_adapter(SPEC, 0)
    row = np.random.default_rng(0).random((SPEC.num_layers, SPEC.max_rank)) < 0.5
    dispatched(dispatcher, adapter, row, SPEC)
    assert bits(adapter.tensors()) == bits(random_adapter(SPEC, 0).tensors())


@every_dispatcher
def test_no_dense_matrix_is_ever_built(dispatcher: Dispatcher) -> None:
    spec = AdapterSpec((ModuleSpec("m", 0, d_in=50, d_out=60),), ("layer",), max_rank=4, scale=2.0)
    adapter = random_adapter(spec, 0)
    with LargestTensor() as largest:
        dispatched(dispatcher, adapter, np.array([[True, True, False, False]]), spec)
    assert largest.elements < 50 * 60


def test_one_documented_frozen_dataclass_per_module() -> None:
    for module, cls in strategies(hellora.methods.dispatchers, Dispatcher):
        assert_is_a_strategy_file(module, cls)
