"""Somebody's named arrays as an adapter, and back."""

import pytest
import torch
from torch import Tensor

from hellora.bridges.arrays import Naming
from hellora.core.errors import InputError

PAIR = {"net.layer.0.query.lora_A.weight": torch.ones(2, 4), "net.layer.0.query.lora_B.weight": torch.ones(3, 2)}


def test_factors_are_found_by_their_names_and_layers_keep_the_order_of_the_model() -> None:
    arrays: dict[str, Tensor] = {}
    for layer in (2, 10):
        for module, width in (("query", 4), ("value", 5)):
            arrays[f"net.layer.{layer}.{module}.lora_A.default.weight"] = torch.randn(2, width)
            arrays[f"net.layer.{layer}.{module}.lora_B.default.weight"] = torch.randn(3, 2)
    arrays["head.weight"] = torch.randn(7, 3)
    naming = Naming.of(arrays)
    assert naming.spec.layers == ("net.layer.2", "net.layer.10")
    assert [(m.layer, m.d_in, m.d_out) for m in naming.spec.modules] == [(0, 4, 3), (0, 5, 3), (1, 4, 3), (1, 5, 3)]
    adapter = naming.adapter(arrays)
    assert list(adapter.head) == ["head.weight"]
    assert adapter.pairs["net.layer.10.value"].rank == naming.spec.max_rank == 2
    back = naming.arrays(adapter)
    assert list(back) == list(arrays)
    assert all(torch.equal(back[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"classifier.weight": torch.ones(2)}, "the arrays have no LoRA pair: name their factors as PEFT does"),
        ({"x.0.q.lora_A.weight": torch.ones(2, 4)}, "x.0.q.lora_A.weight, and not the other factor of it: send both"),
        (PAIR | {"net.layer.0.query.lora_B.weight": torch.ones(3, 4)}, "are no LoRA pair: A (2, 4) and B (3, 4)"),
        (
            PAIR | {"x.1.q.lora_A": torch.ones(3, 4), "x.1.q.lora_B": torch.ones(4, 3)},
            "the pairs have ranks 2, 3: give",
        ),
        ({"q.lora_A": torch.ones(2, 4), "q.lora_B": torch.ones(4, 2)}, "q is in no numbered block"),
        (PAIR | {"steps": torch.ones(1, dtype=torch.int64)}, "array steps is torch.int64: send what is trained"),
    ],
)
def test_what_is_no_adapter_is_refused(arrays: dict[str, Tensor], words: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$") as refused:
        Naming.of(arrays)
    assert words in str(refused.value)
