"""How attention is computed where somebody says it, and the refusals of what is not there."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.testing import assert_close

from hellora.budgets.coefficients import ActivationPolicy
from hellora.core.errors import InputError
from hellora.core.exchange import TrainSettings
from hellora.costing.calibration import calibrate
from hellora.costing.traced_rows import Shape
from hellora.experiments.config import check
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.tasks.causal_lm import CausalLM

KIND = CausalLM()
IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 12, 13, 3]])


def loaded(folder: Path, attention: str, weights: bool = True) -> BaseModel:
    settings = ModelSettings(name=str(folder), rank=3, attn_implementation=attention)
    return KIND.load(settings, (), 0, weights=weights)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("weights", [True, False])
def test_attention_is_as_asked_for(attention: str, weights: bool, tiny_llama: Path) -> None:
    assert loaded(tiny_llama, attention, weights).net.config._attn_implementation == attention


def test_both_say_the_same(tiny_llama: Path) -> None:
    eager, fused, usual = (loaded(tiny_llama, name).net for name in ("eager", "sdpa", ""))
    with torch.no_grad():
        assert_close(eager(input_ids=IDS).logits, fused(input_ids=IDS).logits, atol=1e-5, rtol=1e-5)
        assert torch.equal(usual(input_ids=IDS).logits, fused(input_ids=IDS).logits)


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ("flash_attention_2", "needs the package flash_attn: install it, or remove it"),
        ("nonsense", r"cannot be used here with '.*' \(.*not supported\): remove it, or choose sdpa or eager"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(attention: str, message: str, tiny_llama: Path) -> None:
    with pytest.raises(InputError, match=rf"model\.attn_implementation = '{attention}' {message}") as refusal:
        loaded(tiny_llama, attention)
    assert "\n" not in str(refusal.value)


def test_a_model_that_has_only_one_is_named(tmp_path: Path) -> None:
    """MPT computes its attention itself."""
    config = transformers.CONFIG_MAPPING["mpt"](vocab_size=40, d_model=32, n_layers=2, n_heads=2, max_seq_len=40)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(str(tmp_path))
    with pytest.raises(InputError, match=r"model\.attn_implementation = 'sdpa' cannot be used here"):
        loaded(tmp_path, "sdpa")


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_a_plan_needs_no_kernel(attention: str, tiny_llama: Path) -> None:
    """For it nothing is computed; a fused kernel is counted as sdpa is."""
    assert loaded(tiny_llama, attention, weights=False).net.config._attn_implementation == "sdpa"


def test_costs_are_those_of_the_attention_that_runs(tiny_llama: Path) -> None:
    """Eager attention keeps what a softmax made of its scores, (heads, tokens, tokens) in each layer."""
    method = check("any", {"task": {"name": "causal_lm"}}).method
    models = {
        name: calibrate(loaded(tiny_llama, name, weights=False), KIND, Shape(4, 64), method, TrainSettings())
        for name in ("eager", "sdpa", "")
    }
    kept = {name: model.steps[ActivationPolicy()].blocks["trained"].keep[1].sum() for name, model in models.items()}
    assert kept["eager"] > kept["sdpa"]
    assert kept[""] == kept["sdpa"]


def test_code_of_a_hub_is_not_fetched_unasked() -> None:
    with pytest.raises(ValueError, match="is code to be fetched and run: to let it run, set trust_remote_code = true"):
        ModelSettings(attn_implementation="kernels-community/flash-attn2")
    assert ModelSettings(attn_implementation="kernels-community/flash-attn2", trust_remote_code=True)


def test_flex_attention_does_not_train_on_a_cpu() -> None:
    table: dict[str, Any] = {"model": {"attn_implementation": "flex_attention"}, "compute": {"device": "cpu"}}
    with pytest.raises(InputError, match="has no gradient on a CPU"):
        check("any", table)
    check("any", table, simulated=False)
