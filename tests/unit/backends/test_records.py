"""Messages as Flower's records: the same bits back, and nothing but messages taken."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from factories import bits, random_adapter, task_for, tiny_spec
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from safetensors.torch import load

from hellora.backends.records import fields_of, from_records, note, num_bytes, text_of, to_records
from hellora.backends.wire import pack_task, to_bytes, unpack_task

SPEC = tiny_spec()
ROW = np.ones((SPEC.num_layers, SPEC.max_rank), dtype=bool)
TASK = task_for(3, random_adapter(SPEC, 0), ROW)


def test_a_task_comes_back_bit_for_bit() -> None:
    back = unpack_task(from_records(to_records(pack_task(TASK), contract="of all")))
    assert bits(back.adapter.tensors()) == bits(TASK.adapter.tensors())
    assert (back.client, back.seed, back.train, back.policy) == (3, TASK.seed, TASK.train, TASK.policy)
    assert (back.trained == TASK.trained).all()


def test_tensors_of_every_width_keep_their_bits_and_begin_where_they_can_be_read() -> None:
    tensors = {
        "odd": torch.tensor([True, False, True]),
        "half": torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16),
        "single": torch.tensor([[0.1], [torch.nan], [-0.0]]),
        "double": torch.tensor([0.1], dtype=torch.float64),
        "none": torch.zeros(0, 4),
        "scalar": torch.tensor(7),
    }
    data = from_records(to_records(to_bytes(tensors, {"a": [1, "β"]})))
    back = load(data)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        assert back[name].flatten().view(torch.uint8).tolist() == tensor.flatten().view(torch.uint8).tolist()
    assert fields_of(to_records(data)) == {"a": [1, "β"]}


def test_a_tensor_that_many_get_is_the_same_object_to_flower() -> None:
    one, other = (to_records(pack_task(task_for(client, TASK.adapter, ROW))) for client in (0, 1))
    for name, array in one.array_records["tensors"].items():
        assert array.object_id == other.array_records["tensors"][name].object_id


def test_texts_travel_beside() -> None:
    records = to_records(pack_task(TASK), contract="of all")
    assert text_of(records, "contract") == "of all"
    tensors = TASK.adapter.num_bytes + TASK.trained.size
    assert tensors < num_bytes(records) < tensors + 2000
    with pytest.raises(ValueError, match="no text 'other'"):
        text_of(records, "other")


ARRAY = {"w": Array("F32", (1,), "safetensors", b"1234")}


@pytest.mark.parametrize(
    ("records", "why"),
    [
        (RecordDict({}), "no text 'fields'"),
        (RecordDict({"tensors": ArrayRecord(ARRAY)}), "no text 'fields'"),
        (RecordDict({"message": ConfigRecord({"fields": "{}"})}), "no record 'tensors'"),
        (RecordDict({"message": ConfigRecord({"fields": 3}), "tensors": ArrayRecord(ARRAY)}), "no text 'fields'"),
        (
            RecordDict(
                {
                    "message": ConfigRecord({"fields": "{}"}),
                    "tensors": ArrayRecord({"w": Array("float32", (1,), "numpy.ndarray", b"1234")}),
                }
            ),
            "tensor 'w' is stored as 'numpy.ndarray'",
        ),
        (
            RecordDict(
                {
                    "message": ConfigRecord({"fields": "{}"}),
                    "tensors": ArrayRecord({"__metadata__": Array("F32", (1,), "safetensors", b"1234")}),
                }
            ),
            "__metadata__",
        ),
    ],
)
def test_what_is_no_message_is_refused(records: RecordDict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        from_records(records)


def test_notes_hold_a_table() -> None:
    assert fields_of(note({"a": [1, None]})) == {"a": [1, None]}
    with pytest.raises(ValueError, match="not a table"):
        fields_of(RecordDict({"message": ConfigRecord({"fields": "[1]"})}))


@pytest.mark.parametrize("module", ["deployment.flower_app", "deployment.client_process", "deployment.server_process"])
def test_processes_around_flower_need_no_torch(module: str) -> None:
    """Those that live for one message must start fast; those that live long must leave memory for training."""
    code = (
        f"import sys, hellora.{module}; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
