"""Rows that are encoded once and kept small are the rows encoded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bases
import numpy as np
import pytest
from datasets import Dataset

import hellora.client.encoding
from hellora.client.encoding import Packed, Ragged, encode_rows, packed
from hellora.client.work import ClientWork
from hellora.core.errors import InputError
from hellora.core.exchange import ClientFailure
from hellora.model.resident import BaseModel
from hellora.tasks import Encoded
from hellora.tasks.causal_lm import CausalLM
from hellora.tasks.sequence_classification import SequenceClassification


@dataclass(frozen=True)
class Counting(SequenceClassification):
    """Counts the rows that it encodes."""

    seen: Any = ()

    def encode(self, base: BaseModel, rows: Any) -> Encoded:
        self.seen.extend(rows["text"][:])
        return super().encode(base, rows)


@pytest.mark.parametrize("at_once", [3, 5, 4096])
def test_what_is_kept_is_what_was_encoded(at_once: int, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hellora.client.encoding, "AT_ONCE", at_once)
    base, rows = bases.load(tiny_bert), bases.texts(10)
    plain, kept = bases.MEAN_POOLING.encode(base, rows), encode_rows(bases.MEAN_POOLING, base, rows)
    assert [kept.examples[i] for i in range(10)] == plain.examples
    assert [type(n) for n in kept.examples[9]["input_ids"]] == [int] * len(kept.examples[9]["input_ids"])
    lengths = plain.lengths
    assert lengths is not None
    assert kept.lengths is not None
    assert kept.lengths.tolist() == lengths.tolist()
    some = kept.select(np.array([7, 0, 7]))
    assert list(some.examples) == [plain.examples[i] for i in (7, 0, 7)]
    assert some.lengths is not None
    assert some.lengths.tolist() == [lengths[i] for i in (7, 0, 7)]


def test_supervised_tokens_are_those_of_the_selection(tiny_llama: Path) -> None:
    base = bases.load(tiny_llama, CausalLM())
    rows = bases.instructions(["the old boat"] * 3, ["a", "the boat near", "a boat"])
    encoded = encode_rows(CausalLM(), base, rows)
    alone = [CausalLM().encode(base, rows.select([i])).num_tokens for i in range(3)]
    assert encoded.num_tokens == sum(filter(None, alone))
    assert encoded.select(np.array([1])).num_tokens == alone[1]
    assert encode_rows(bases.MEAN_POOLING, bases.load(tiny_llama), bases.texts(2)).num_tokens is None


@pytest.mark.parametrize(
    ("column", "dtype"),
    [
        ([[0, 255], [], [3]], np.uint8),
        ([[-100, 30000]], np.int32),
        ([[70000]], np.uint32),
        ([[True, False]], None),
        ([[0.5]], None),
        ([[2**70]], None),
        ([(1, 2)], None),
        ([1, 2], None),
        ([[]], None),
    ],
)
def test_only_lists_of_ints_are_packed(column: list[Any], dtype: Any) -> None:
    found = packed(column)
    assert (found.values.dtype if isinstance(found, Ragged) else None) == dtype
    assert [found[row] for row in range(len(column))] == column


def test_examples_that_are_made_when_they_are_read_stay_as_they_are() -> None:
    class Read(Sequence[Any]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, row: Any) -> Any:
            raise AssertionError("read too early")

    encoded = Encoded(Read())
    assert hellora.client.encoding.small(encoded) is encoded
    assert isinstance(hellora.client.encoding.small(Encoded([{"a": [1]}, {"a": [2, 3]}])).examples, Packed)
    uneven = Encoded([{"a": [1]}, {"b": 2}])
    assert hellora.client.encoding.small(uneven) is uneven


def test_each_row_is_tokenised_once_per_run(tiny_bert: Path) -> None:
    seen: list[str] = []
    base, rows = bases.load(tiny_bert), bases.texts(12)
    work = ClientWork(base, Counting(seen=seen), rows, [np.arange(5), np.arange(5, 12)])
    for client in (0, 1, 0, 1):
        answer = work.attempt(replace(bases.task_of(base, [2]), client=client))
        assert not isinstance(answer, ClientFailure), answer
    assert seen == rows["text"][:]


def test_a_row_that_cannot_be_encoded_is_named_by_its_place(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hellora.client.encoding, "AT_ONCE", 2)
    base = bases.load(tiny_bert)
    rows = Dataset.from_dict({"text": ["boat", "boat", "boat", None], "label": [0] * 4})
    with pytest.raises(InputError, match="row 3"):
        encode_rows(bases.MEAN_POOLING, base, rows)
