"""What a rule of local training knows of a task: shapes, rows, and tensors cut and put back."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import bits, local_of, random_adapter, task_for, tiny_spec

from hellora.core.algebra import trained_part
from hellora.core.exchange import Declared, TensorSpec
from hellora.methods.local import Shapes, cut, prefixed, put_back

SPEC = tiny_spec()
ROW = np.array([[True, False, False, True], [False] * 4, [False, True, True, True]])
ADAPTER = random_adapter(SPEC, 0)
HEAD = {name: tuple(tensor.shape) for name, tensor in ADAPTER.head.items()}


@pytest.mark.parametrize("factors", ["both", "A", "B"])
def test_trained_tensors_are_those_of_the_row(factors: str) -> None:
    shapes = Shapes(SPEC, ROW, factors, HEAD)  # type: ignore[arg-type]
    part = replace(trained_part(ADAPTER, ROW, SPEC), head=ADAPTER.head)
    expected = {
        name: TensorSpec.of(tensor)
        for name, tensor in part.tensors().items()
        if factors == "both" or name.startswith("head.") or name.endswith(f"lora_{factors}")
    }
    assert shapes.trained_tensors() == expected
    assert local_of(replace(task_for(0, ADAPTER, ROW), factors=factors), SPEC).parameters.keys() == expected.keys()
    assert shapes.all_tensors() == {name: TensorSpec.of(tensor) for name, tensor in ADAPTER.tensors().items()}


def test_cut_and_put_back() -> None:
    shapes = Shapes(SPEC, ROW, head=HEAD)
    whole, other = ADAPTER.tensors(), random_adapter(SPEC, 1).tensors()
    for name, spec in shapes.trained_tensors().items():
        rows = shapes.rows(name)
        part = cut(whole[name], name, rows)
        assert tuple(part.shape) == spec.shape
        assert bits({0: put_back(other[name], part, name, rows)}) != bits({0: other[name]})
        assert bits({0: cut(put_back(other[name], part, name, rows), name, rows)}) == bits({0: part})
        back = put_back(whole[name], part, name, rows)
        assert bits({0: back}) == bits({0: whole[name]})
        assert back.data_ptr() != whole[name].data_ptr(), "a copy"
    assert cut(whole["block.0.query.lora_A"], "block.0.query.lora_A", torch.tensor([0, 3])).shape == (2, 5)
    assert shapes.rows("head.bias") is None
    rows = shapes.rows("block.2.value.lora_B")
    assert rows is not None
    assert rows.tolist() == [1, 2, 3]


def test_declared_tensors_of_several_rules_have_their_names_in_front() -> None:
    one = Declared({"x": TensorSpec((1,))}, {"y": TensorSpec((2,))}, {"z": TensorSpec((3,))}, scratch_bytes=5)
    both = prefixed({"a": one, "b": Declared(report={"y": TensorSpec((4,))}, scratch_bytes=7)})
    assert both == Declared(
        {"a/x": TensorSpec((1,))},
        {"a/y": TensorSpec((2,)), "b/y": TensorSpec((4,))},
        {"a/z": TensorSpec((3,))},
        scratch_bytes=12,
    )
