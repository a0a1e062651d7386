"""What tasks share: classification metrics by hand, and the length limit."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bases
import pytest
from torch import nn

from hellora.tasks import classification_metrics, length_limit


def test_classification_metrics_by_hand() -> None:
    """Class 0: precision 2/3, recall 2/3. Class 1: 1/2, 1/1, F 2/3. Class 2: no prediction, F 0."""
    references, predictions = [0, 0, 0, 1, 2], [0, 0, 1, 1, 0]
    assert classification_metrics(0.7, predictions, references) == {
        "accuracy": pytest.approx(3 / 5),
        "macro_f1": pytest.approx((2 / 3 + 2 / 3 + 0) / 3),
        "micro_f1": pytest.approx(3 / 5),
        "loss": 0.7,
    }


def test_classes_that_do_not_occur_do_not_count() -> None:
    assert classification_metrics(0.0, [4, 7], [4, 7])["macro_f1"] == 1


class Tables(nn.Module):
    """A network that has nothing but tables of positions, and a config."""

    def __init__(self, config: dict[str, Any], **tables: nn.Module) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.embeddings = nn.ModuleDict(tables)


def base(
    model_max_length: int, *, rows: int = 0, padding_idx: int | None = None, offset: int = 0, **config: Any
) -> Any:
    tables = {} if not rows else {"position_embeddings": nn.Embedding(rows, 2, padding_idx)}
    for table in tables.values():
        table.offset = offset  # type: ignore[assignment]
    return SimpleNamespace(
        net=Tables(config, **tables),
        processor=SimpleNamespace(model_max_length=model_max_length),
    )


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (base(10**30, max_position_embeddings=512), 128),
        (base(10**30, max_position_embeddings=64), 64),
        (base(50, max_position_embeddings=64), 50),
        (base(10**30), 128),
        (base(10**30, max_position_embeddings=None), 128),
        (base(10**30, max_position_embeddings=-1), 128),  # XLNet
        (base(10**30, max_seq_len=40), 40),  # MPT
        (base(512, max_position_embeddings=66, rows=66, padding_idx=1), 64),  # RoBERTa
        (base(512, max_position_embeddings=66, rows=66, padding_idx=3), 62),
        (base(512, max_position_embeddings=66, rows=66, padding_idx=0), 65),
        (base(512, max_position_embeddings=64, rows=66, offset=2), 64),  # BART, OPT
        (base(512, max_position_embeddings=66, rows=66), 66),  # BERT
        (base(512, rows=66), 66),
    ],
)
def test_length_limit(model: Any, expected: int) -> None:
    assert length_limit(model, 128) == expected


def test_length_limit_of_a_real_model(tiny_bert: Path) -> None:
    model = bases.load(tiny_bert)
    assert (length_limit(model, 500), length_limit(model, 20)) == (64, 20)
