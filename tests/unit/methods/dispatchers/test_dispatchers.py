"""truncate and bypass: what of an adapter goes down, by hand."""

from dataclasses import replace

import numpy as np
import torch
from factories import bits, dispatched, random_adapter, tiny_spec

from hellora.core.algebra import components
from hellora.core.types import Adapter, LoraPair
from hellora.methods.dispatchers.bypass import Bypass
from hellora.methods.dispatchers.truncate import Truncate

SPEC = tiny_spec(num_layers=3, max_rank=4)
# Layer 0: a prefix. Layer 1: nothing. Layer 2: scattered components.
ROW = np.array([[True, True, False, False], [False] * 4, [False, True, False, True]])


def global_adapter() -> Adapter:
    plain = random_adapter(SPEC, 0)
    residual = {name: replace(components(pair, torch.arange(1)), scale=1.0) for name, pair in plain.pairs.items()}
    return replace(plain, residual=residual, prototypes={2: random_adapter(SPEC, 1)})


def test_truncate_by_hand() -> None:
    adapter = global_adapter()
    sent = dispatched(Truncate(), adapter, ROW, SPEC)
    assert list(sent.pairs) == list(adapter.pairs)
    for name, pair in sent.pairs.items():
        whole = adapter.pairs[name]
        index = {0: [0, 1], 1: [0, 1, 2, 3], 2: [1, 3]}[SPEC.layer_of[name]]  # what is not trained acts whole
        expected = LoraPair(whole.A[index], whole.B[:, index], whole.scale)
        assert bits({"A": pair.A, "B": pair.B}) == bits({"A": expected.A, "B": expected.B})
        assert pair.scale == whole.scale
    assert bits(sent.head) == bits(adapter.head)
    assert {name: bits({"A": p.A, "B": p.B}) for name, p in sent.residual.items()} == {
        name: bits({"A": p.A, "B": p.B}) for name, p in adapter.residual.items()
    }
    assert not sent.prototypes


def test_bypass_by_hand() -> None:
    adapter = global_adapter()
    sent = dispatched(Bypass(), adapter, ROW, SPEC)
    there = [f"block.{layer}.{leaf}" for layer in (0, 2) for leaf in ("query", "value")]
    assert list(sent.pairs) == list(sent.residual) == there
    assert all(sent.pairs[name] is adapter.pairs[name] for name in there), "whole, to the full rank"
    assert bits(sent.head) == bits(adapter.head)
    assert not sent.prototypes
    assert Bypass().sends(ROW, SPEC).bypass
    assert not Truncate().sends(ROW, SPEC).bypass
